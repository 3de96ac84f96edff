package gzip

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
)

// point is one that was just found.
type point struct {
	Point
	window []byte // as it is
}

// pending are points between those who find them and those who cut there.
type pending struct {
	mu  sync.Mutex
	all []point
}

func (q *pending) add(p point) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all = append(q.all, p)
}

// take returns the first point, if it is at or before byte out of the tar.
func (q *pending) take(out int64) (p point, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.all) == 0 || q.all[0].Out > out {
		return p, false
	}
	p, q.all = q.all[0], q.all[1:]
	return p, true
}

// cutter cuts a tar into spans as it passes by. A point is pending before what comes
// behind it passes.
type cutter struct {
	pending *pending
	points  []Point
	pos     int64
	tar     hash.Hash
	span    hash.Hash
}

func newCutter(p *pending) *cutter {
	return &cutter{pending: p, tar: sha256.New(), span: sha256.New()}
}

// run passes on what it reads.
func (c *cutter) run(r io.Reader, w io.Writer) error {
	p := make([]byte, piece)
	for {
		n, err := r.Read(p)
		c.pass(p[:n])
		if _, err := w.Write(p[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			c.pass(nil)
			c.endSpan()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *cutter) pass(p []byte) {
	c.tar.Write(p)
	for {
		next, ok := c.pending.take(c.pos + int64(len(p)))
		if !ok {
			break
		}
		n := next.Out - c.pos
		c.span.Write(p[:n])
		p, c.pos = p[n:], next.Out
		c.endSpan()
		if next.window != nil {
			next.Window = pack(next.window)
		}
		c.points = append(c.points, next.Point)
	}
	c.span.Write(p)
	c.pos += int64(len(p))
}

// endSpan gives the last point its digest.
func (c *cutter) endSpan() {
	if n := len(c.points); n > 0 {
		c.span.Sum(c.points[n-1].Digest[:0])
	}
	c.span.Reset()
}

var packer = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
		zstd.WithWindowSize(maxWindow), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
})

var unpacker = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxWindow))
})

// pack compresses a window.
func pack(window []byte) []byte {
	z, err := packer()
	if err != nil {
		panic(err) // the options are constants
	}
	return z.EncodeAll(window, nil)
}

// unpack is the inverse of pack, of up to maxWindow bytes. Nothing gives nothing.
func unpack(packed []byte) ([]byte, error) {
	z, err := unpacker()
	if err != nil {
		panic(err) // the options are constants
	}
	window, err := z.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("gzip index: %w: a window: %w", toc.ErrMalformed, err)
	}
	return window, nil
}
