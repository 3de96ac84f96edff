package gzip

import (
	"bufio"
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

// Scan makes the table of a tar that passes by, with digests, Inner as offset in the
// tar, and Start and End 0.
type Scan func(tar io.Reader) (*toc.TOC, error)

// Build makes the index of a layer in one pass, in three steps side by side: the
// layer is inflated; spans are cut and hashed; scan makes the table. It reads r to its
// end, checks every member, and returns when all of that has ended.
//
// The error is one of r, or of scan; io.ErrUnexpectedEOF when the layer ends inside
// a member; or it wraps [toc.ErrFormat] when it does not begin as gzip does,
// [toc.ErrMalformed] or [toc.ErrLimit].
func Build(r io.Reader, scan Scan) (*Index, error) { return build(r, scan, Span) }

func build(r io.Reader, scan Scan, span int64) (*Index, error) {
	inflated, inflate := io.Pipe()
	tar, pass := io.Pipe()
	var (
		points  pending
		c       = newCutter(&points)
		in      = inflation{blob: newHashedBlob(r, piece), points: &points, w: bufio.NewWriterSize(inflate, piece), span: span}
		table   *toc.TOC
		cut     error
		scanned error
		steps   sync.WaitGroup
	)
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
	inflate.CloseWithError(err)
	steps.Wait()
	// A later step's error ends the earlier ones, and the other way round.
	for _, err := range []error{err, cut, scanned} {
		if err != nil {
			return nil, err
		}
	}
	x := &Index{Size: in.pos(), TarSize: in.out, Points: c.points}
	if last := len(x.Points) - 1; last > 0 && x.Points[last].Out == x.TarSize {
		x.Points = x.Points[:last] // nothing comes after it
	}
	in.src.hash.Sum(x.Blob[:0])
	c.tar.Sum(x.DiffID[:0])
	x.Table = table
	if err := x.check(); err != nil {
		return nil, err
	}
	x.Table = x.place(table)
	return x, nil
}

// inflation is a layer that is being inflated, from its beginning to its end.
type inflation struct {
	*blob
	w      *bufio.Writer
	points *pending
	out    int64 // bytes that came out
	blocks int64
	span   int64 // what is between points
	last   int64 // the byte of the tar that the last point is at
	member member
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
		if f.out == 0 && in == 0 || f.out-f.last >= f.span/8 {
			f.add(point{Point: Point{In: in, Out: f.out}})
		}
		if err := f.inflate(); err != nil {
			return err
		}
	}
}

func (f *inflation) add(p point) {
	f.last = p.Out
	f.points.add(p)
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
	if at.Final || p.Out-f.last < f.span {
		return
	}
	p.window = append([]byte(nil), p.window...)
	f.add(p)
}
