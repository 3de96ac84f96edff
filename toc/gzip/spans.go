package gzip

import (
	"io"
	"sync"

	"github.com/granary-oci/granary/toc"
)

// Spans keep the spans of layers that were read last, as far as they have been
// inflated, and can go on with them: small files that are near each other are inflated
// together. The zero value keeps a few. It is safe for concurrent use.
type Spans struct {
	mu   sync.Mutex
	kept []*span // the one that was used last is the last
}

// maxSpans bounds the spans that are kept, most of which are a little larger than
// [Span].
const maxSpans = 8

// span is the beginning of what inflates from a point.
type span struct {
	x *Index
	i int

	mu  sync.Mutex // held by whoever reads on
	src lender
	s   *stream // nil before the first use, and after a failure
	buf []byte
}

// lender reads from whatever reader the one who reads on has.
type lender struct{ r io.ReaderAt }

func (l *lender) ReadAt(p []byte, off int64) (int, error) { return l.r.ReadAt(p, off) }

// of returns the span of a point.
func (c *Spans) of(x *Index, i int) *span {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, s := range c.kept {
		if s.x == x && s.i == i {
			c.kept = append(append(c.kept[:at:at], c.kept[at+1:]...), s)
			return s
		}
	}
	s := &span{x: x, i: i}
	c.kept = append(c.kept, s)
	if len(c.kept) > maxSpans {
		c.kept = append([]*span(nil), c.kept[1:]...)
	}
	return s
}

// read returns the bytes of the tar from one place to another, both in the span,
// inflated from r as far as they have not been.
func (s *span) read(r io.ReaderAt, from, to int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	begin := s.x.Points[s.i].Out
	from, to = from-begin, to-begin
	if n := int64(len(s.buf)); n < to {
		if err := s.readOn(r, to); err != nil {
			s.s, s.buf = nil, nil // it is begun anew, by whoever comes next
			return nil, err
		}
	}
	return s.buf[from:to:to], nil // of which nothing changes any more
}

// readOn inflates up to a place in the span.
func (s *span) readOn(r io.ReaderAt, to int64) (err error) {
	s.src.r = r
	defer func() { s.src.r = nil }() // it is somebody's
	end := s.x.spanEnd(s.i)
	begin := s.x.Points[s.i]
	at := begin.In
	if s.s != nil {
		at = s.s.blob.pos()
	}
	toc.Expect(r, at, s.x.guess(begin.Out+to))
	if s.s == nil {
		if s.s, err = s.x.resume(&s.src, s.i, s.x.end(end), nil); err != nil {
			return err
		}
		s.buf = make([]byte, 0, end-begin.Out)
	}
	had := len(s.buf)
	s.buf = s.buf[:to]
	if _, err := io.ReadFull(s.s, s.buf[had:]); err != nil {
		return unexpected(err)
	}
	return nil
}
