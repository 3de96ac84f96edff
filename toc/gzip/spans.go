package gzip

import (
	"bytes"
	"io"
	"slices"
	"sync"

	"github.com/granary-oci/granary/toc"
)

// Spans keep the spans of layers that were read last, as far as they have been
// inflated, and can go on with them: small files that are near each other are inflated
// together. The zero value keeps up to 12 MiB. It is safe for concurrent use.
type Spans struct {
	mu   sync.Mutex
	kept []*span // the one that was used last is the last
	held int64   // bytes of them
	// The spans of an index that were fetched ahead last.
	ahead struct {
		x           *Index
		first, next int
	}
}

const (
	// maxHeld bounds what the spans that are kept take, in bytes.
	maxHeld = 12 << 20
	// maxSpan is up to where a span is kept: what somebody says of a layer must not make
	// it larger.
	maxSpan = maxHeld / 2
	// resumed is about what it takes to be in the midst of a span, in bytes: what is read
	// at once, the inflater's window, and its tables.
	resumed = readSize + maxWindow + 8<<10
)

// span is the beginning of what inflates from a point.
type span struct {
	x *Index
	i int

	mu  sync.Mutex // held by whoever reads on
	src lender
	s   *stream // nil before the first use, after a failure, and at the end
	buf []byte
}

// lender reads from whatever reader the one who reads on has.
type lender struct{ r io.ReaderAt }

func (l *lender) ReadAt(p []byte, off int64) (int, error) { return l.r.ReadAt(p, off) }

// read returns the bytes of the tar from one place to another, of which spans i to last
// have some each, inflated from r as far as they have not been.
func (c *Spans) read(x *Index, r io.ReaderAt, i, last int, from, to int64) (io.Reader, error) {
	var parts []io.Reader
	expected := max(to, c.readAhead(x, i, last))
	for ; i <= last; i++ {
		p, err := c.of(x, i).read(r, max(from, x.Points[i].Out), min(to, x.spanEnd(i)), expected)
		if err != nil {
			return nil, err
		}
		parts = append(parts, bytes.NewReader(p))
	}
	return io.MultiReader(parts...), nil
}

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
	for c.held += s.takes(); c.held > maxHeld; c.kept = c.kept[1:] {
		c.held -= c.kept[0].takes()
		c.kept[0] = nil
	}
	return s
}

// readAhead returns the byte of the tar up to which is fetched for who reads spans i to
// last: who has come there through the spans before gets as many again, so that reading on
// takes few requests. It is 0 for others, and within what was fetched in that way.
func (c *Spans) readAhead(x *Index, i, last int) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i <= last && c.keeps(x, i) {
		i++
	}
	if i > last || c.ahead.x == x && c.ahead.first <= i && i < c.ahead.next {
		return 0
	}
	before := i
	for c.keeps(x, before-1) {
		before--
	}
	if before == i {
		return 0
	}
	c.ahead.x, c.ahead.first, c.ahead.next = x, i, min(i+i-before, len(x.Points)-1)+1
	return x.spanEnd(c.ahead.next - 1)
}

func (c *Spans) keeps(x *Index, i int) bool {
	return slices.ContainsFunc(c.kept, func(s *span) bool { return s.x == x && s.i == i })
}

// takes returns how many bytes a span takes at the most.
func (s *span) takes() int64 { return s.x.spanEnd(s.i) - s.x.Points[s.i].Out + resumed }

// read returns the bytes of the tar from one place to another, both in the span,
// inflated from r as far as they have not been. What is up to byte expected is about to
// be read too.
func (s *span) read(r io.ReaderAt, from, to, expected int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	begin := s.x.Points[s.i].Out
	from, to = from-begin, to-begin
	if n := int64(len(s.buf)); n < to {
		if err := s.readOn(r, to, expected); err != nil {
			s.s, s.buf = nil, nil // it is begun anew, by whoever comes next
			return nil, err
		}
	}
	return s.buf[from:to:to], nil // of which nothing changes any more
}

// readOn inflates up to a place in the span. Whoever has begun it and comes back gets the
// rest of it fetched.
func (s *span) readOn(r io.ReaderAt, to, expected int64) (err error) {
	s.src.r = r
	defer func() { s.src.r = nil }() // it is somebody's
	end := s.x.spanEnd(s.i)
	begin := s.x.Points[s.i]
	at := begin.In
	if s.s != nil {
		at, expected = s.s.blob.pos(), max(expected, end)
	}
	toc.Expect(r, at, s.x.guess(expected))
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
	if begin.Out+to == end {
		s.s = nil
	}
	return nil
}
