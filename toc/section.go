package toc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Sizes of what is read of a layer at once.
const (
	wholePiece = 1 << 20  // when all of it is needed
	somePiece  = 64 << 10 // when it may not be
)

// Section is a run of a layer's bytes, to be read in order by a decoder, in few and
// large pieces. It is for one goroutine.
//
// It tells a layer that is wrong from one that could not be read: see Cause.
type Section struct {
	*bufio.Reader
	src source
}

// NewSection returns the bytes of r from start to end, 0 ≤ start ≤ end, of which all
// are going to be read.
func NewSection(r io.ReaderAt, start, end int64) *Section {
	Expect(r, start, end)
	return newSection(r, start, end, wholePiece)
}

// Expecter is a layer's reader that is told which bytes are about to be read, all of them,
// so that it can get them at once. It returns soon, and may do nothing.
type Expecter interface{ Expect(start, end int64) }

// Expect tells a layer's reader what is about to be read, if it wants to know.
func Expect(r io.ReaderAt, start, end int64) {
	if e, ok := r.(Expecter); ok && start < end {
		e.Expect(start, end)
	}
}

// Section returns the bytes of r, a layer, that the extent is read from.
//
// An extent with a digest is read as a whole, for it is not given out otherwise; of
// another, or one that shares its bytes with others, hardly more is read than asked.
func (x *Extent) Section(r io.ReaderAt) *Section {
	if x.Digest.Known() && x.Inner == 0 {
		Expect(r, x.Start, x.End)
		return newSection(r, x.Start, x.End, wholePiece)
	}
	return newSection(r, x.Start, x.End, somePiece)
}

func newSection(r io.ReaderAt, start, end int64, piece int64) *Section {
	s := &Section{src: source{r: io.NewSectionReader(r, start, end-start)}}
	s.Reader = bufio.NewReaderSize(&s.src, int(min(piece, end-start)))
	return s
}

// source keeps the error that its reader has failed with.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// Cause returns the error to report for err, with which a decoder of the bytes has
// failed: that of the layer's reader, if it is to blame; otherwise err, wrapped with
// [ErrMalformed] if it is not yet.
func (s *Section) Cause(err error) error {
	switch {
	case s.src.err != nil:
		return s.src.err
	case errors.Is(err, ErrMalformed) || errors.Is(err, ErrLimit):
		return err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

// contentCause is Cause as an [Inflater] reports it.
func (s *Section) contentCause(err error) error {
	if s.src.err == nil && (err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)) {
		return io.ErrUnexpectedEOF
	}
	return s.Cause(err)
}

// maxInner bounds what is inflated only to be skipped. A member that several files
// share is not much larger than what one of them would be worth.
const maxInner = 64 << 20

// Content returns what an extent has at off, 0 ≤ off ≤ x.Size, out of z, which decodes
// the section from its beginning; failed is why it does not. done, which ends the use of
// z, is called once: when the content is closed, or by Content if that fails.
func (s *Section) Content(z io.Reader, failed error, x *Extent, off int64, done func()) (io.ReadCloser, error) {
	c := &content{s: s, z: z, left: x.Size - off, done: done}
	if failed != nil {
		c.Close()
		return nil, s.contentCause(failed)
	}
	if x.Inner > maxInner {
		c.Close()
		return nil, fmt.Errorf("%w: content %d bytes into what inflates at %d", ErrLimit, x.Inner, x.Start)
	}
	if _, err := io.CopyN(io.Discard, z, x.Inner+off); err != nil {
		c.Close()
		return nil, s.contentCause(err)
	}
	return c, nil
}

// content is a run of what a decoder gives.
type content struct {
	s    *Section
	z    io.Reader
	left int64
	done func() // nil when it has been called
}

func (c *content) Read(p []byte) (int, error) {
	if c.left == 0 || c.done == nil {
		return 0, io.EOF
	}
	n, err := c.z.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	switch {
	case err == nil || c.left == 0:
		return n, nil
	case n > 0 && err == io.EOF:
		return n, nil
	}
	return n, c.s.contentCause(err)
}

func (c *content) Close() error {
	if c.done != nil {
		c.done()
		c.done = nil
	}
	return nil
}
