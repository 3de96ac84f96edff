package gzip

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"

	"github.com/granary-oci/granary/toc"
)

// piece is how much is handed on at once while an index is built.
const piece = 256 << 10

// A stream of blocks that inflate to less than minBlock bytes on average, the first
// freeBlocks of them apart, is refused: every block costs a copy of the window.
const (
	minBlock   = 512
	freeBlocks = 1 << 14
)

// waiting is how many windows may wait to be packed. With what is behind it each takes
// 96 KiB.
const waiting = 8

// Scan makes the table of a tar that passes by, with digests, Inner as offset in the
// tar, and Start and End 0.
type Scan func(tar io.Reader) (*toc.TOC, error)

// Build makes the index of a layer in one pass, in four steps side by side: the
// layer is inflated; windows are made sparse and packed; spans are cut and hashed; scan
// makes the table. It reads r to its end, checks every member, and returns when all
// of that has ended.
//
// The error is one of r, or of scan; io.ErrUnexpectedEOF when the layer ends inside
// a member; or it wraps [toc.ErrFormat] when it does not begin as gzip does,
// [toc.ErrMalformed] or [toc.ErrLimit].
func Build(r io.Reader, scan Scan) (*Index, error) { return build(r, scan, Span) }

func build(r io.Reader, scan Scan, span int64) (*Index, error) {
	inflated, inflate := io.Pipe()
	tar, pass := io.Pipe()
	var (
		cuts    pending
		c       = newCutter(&cuts)
		windows = make(chan found, waiting)
		in      = inflation{blob: newPassingBlob(r), cuts: &cuts, windows: windows, w: bufio.NewWriterSize(inflate, piece), span: span}
		packed  [][]byte
		table   *toc.TOC
		cut     error
		scanned error
		steps   sync.WaitGroup
	)
	steps.Go(func() { packed = packAll(windows) })
	steps.Go(func() {
		cut = c.run(inflated, pass)
		pass.CloseWithError(cut)
		inflated.CloseWithError(cut)
	})
	steps.Go(func() {
		if table, scanned = scan(tar); scanned == nil {
			_, scanned = io.Copy(io.Discard, tar)
		}
		tar.CloseWithError(scanned)
	})
	err := in.run()
	close(windows)
	inflate.CloseWithError(err)
	steps.Wait()
	// A later step's error ends the earlier ones, and the other way round.
	for _, err := range []error{err, cut, scanned} {
		if err != nil {
			return nil, err
		}
	}
	x := &Index{Size: in.pos(), TarSize: in.out, Points: in.points, Table: table}
	for i := range x.Points {
		x.Points[i].Window, x.Points[i].Digest = packed[i], c.digests[i]
	}
	if last := len(x.Points) - 1; last > 0 && x.Points[last].Out == x.TarSize {
		x.Points = x.Points[:last] // nothing comes after it
	}
	in.src.hash.Sum(x.Blob[:0])
	c.tar.Sum(x.DiffID[:0])
	if err := x.check(); err != nil {
		return nil, err
	}
	x.Table = x.place(table)
	return x, nil
}

// inflation is a layer that is being inflated, from its beginning to its end.
type inflation struct {
	*blob
	w       *bufio.Writer
	cuts    *pending
	windows chan<- found // of the points, in their order
	points  []Point      // without window and digest
	out     int64        // bytes that came out
	blocks  int64
	span    int64 // what is between points
	member  member
}

func (f *inflation) run() error {
	for {
		in := f.pos()
		switch err := f.header(); {
		case err == io.EOF && in > 0:
			return f.w.Flush()
		case in == 0 && (err == io.EOF || errors.Is(err, errHeader)):
			return fmt.Errorf("gzip: %w", toc.ErrFormat)
		case err != nil:
			return err
		}
		if in == 0 || f.out-f.last() >= f.span/2 {
			f.add(Point{In: in, Out: f.out}, found{})
		}
		if err := f.inflate(); err != nil {
			return err
		}
	}
}

// last returns the byte of the tar that the last point is at.
func (f *inflation) last() int64 { return f.points[len(f.points)-1].Out }

func (f *inflation) add(p Point, w found) {
	if p.Out > 0 {
		f.cuts.add(p.Out)
	}
	f.points = append(f.points, p)
	f.windows <- w
}

// inflate inflates the member whose header was read.
func (f *inflation) inflate() error {
	f.member = member{blob: f.blob, in: f.pos(), out: f.out}
	z := flate.NewReaderOpts(f.Reader, flate.WithEobCallback(f.blockEnd))
	sum := uint32(0)
	p := make([]byte, maxWindow)
	for {
		n, err := z.Read(p)
		f.out += int64(n)
		sum = crc32.Update(sum, crc32.IEEETable, p[:n])
		if _, err := f.w.Write(p[:n]); err != nil {
			return err
		}
		switch {
		case err == io.EOF:
			return f.trailer(sum, uint32(f.out-f.member.out))
		case err != nil:
			return f.fail(err)
		case f.out > maxTar:
			return fmt.Errorf("gzip: %w: a tar of more than %d bytes", toc.ErrLimit, int64(maxTar))
		}
	}
}

// blockEnd is told of the end of every block, before what came out of it is read.
func (f *inflation) blockEnd(at flate.InflateCheckpoint) {
	p := f.member.end(at)
	f.blocks++
	if f.blocks > freeBlocks+p.Out/minBlock {
		f.stop(fmt.Errorf("%w: blocks of less than %d bytes", toc.ErrLimit, minBlock))
	}
	if at.Final || p.Out-f.last() < f.span {
		return
	}
	f.add(p, found{window: bytes.Clone(at.Window), behind: f.peek(p.In), bits: p.Bits})
}
