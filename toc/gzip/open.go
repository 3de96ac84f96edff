package gzip

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/flate"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// readSize is how much of a layer is read at once.
const readSize = 64 << 10

const (
	// smallExtent is up to where an extent is worth being inflated with what is near.
	smallExtent = 1 << 20
	// fewSpans is as many as a small extent can be in, if Build made the points. If they
	// are nearer, it is better to inflate on than to begin at each.
	fewSpans = 2*smallExtent/Span + 2
)

// Open opens a layer whose index is known. The error wraps [toc.ErrMalformed] when
// the index is of another blob, or makes no sense. What is inflated for a small file is
// kept in spans, unless that is nil, for the next one.
func Open(r io.ReaderAt, desc ocispec.Descriptor, x *Index, spans *Spans) (*toc.Layer, error) {
	if err := x.check(); err != nil {
		return nil, err
	}
	if desc.Size != x.Size || desc.Digest != "" && desc.Digest != x.Blob.OCI() {
		return nil, fmt.Errorf("gzip index: %w: it is of %s of %d bytes", toc.ErrMalformed, x.Blob, x.Size)
	}
	return &toc.Layer{TOC: x.Table, Inflater: &inflater{r, x, spans}}, nil
}

type inflater struct {
	r     io.ReaderAt
	x     *Index
	spans *Spans // nil for none
}

// On implements [toc.Inflater].
func (f *inflater) On(r io.ReaderAt) toc.Inflater { return &inflater{r, f.x, f.spans} }

// Inflate implements [toc.Inflater].
func (f *inflater) Inflate(e toc.Extent, off int64) (io.ReadCloser, error) {
	if off < 0 || off > e.Size || e.Inner < 0 || e.Inner > f.x.TarSize || e.Size > f.x.TarSize-e.Inner {
		return nil, fmt.Errorf("gzip: %w: byte %d of %d at %d of a tar of %d", toc.ErrMalformed, off, e.Size, e.Inner, f.x.TarSize)
	}
	from, end := e.Inner+off, e.Inner+e.Size
	if from == end {
		return io.NopCloser(bytes.NewReader(nil)), nil // it may be before a header, of which nothing is to be read
	}
	i := f.x.find(from)
	if last, ok := f.together(e.Size, i, end); ok {
		p, err := f.spans.read(f.x, f.r, i, last, from, end)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(p), nil
	}
	toc.Expect(f.r, f.x.Points[i].In, f.x.guess(end))
	s, err := f.x.resume(f.r, i, f.x.end(end), nil)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, s, from-s.out); err != nil {
		return nil, unexpected(err)
	}
	s.limit = end
	return io.NopCloser(s), nil
}

// together reports whether what is in spans i to last, up to byte end of the tar, is
// inflated with what is near.
func (f *inflater) together(size int64, i int, end int64) (last int, ok bool) {
	if f.spans == nil || size > smallExtent {
		return 0, false
	}
	for last = i; last < i+fewSpans; last++ {
		next := f.x.spanEnd(last)
		if next-f.x.Points[last].Out > maxSpan {
			return 0, false
		}
		if end <= next {
			return last, true
		}
	}
	return 0, false
}

// stream is a layer that is inflated from a point on.
type stream struct {
	blob   *blob
	x      *Index
	member member
	z      io.Reader
	span   int   // the point of what comes next
	out    int64 // the byte of the tar that comes next
	limit  int64 // the byte of the tar where reading ends
	hash   hash.Hash
	err    error // that reading ended with
	// passed, unless it is nil, is told of every place that a point could be at, without
	// window and digest.
	passed func(Point)
}

// resume starts at point i of a layer that is read up to byte end.
func (x *Index) resume(r io.ReaderAt, i int, end int64, passed func(Point)) (*stream, error) {
	p := x.Points[i]
	section := io.NewSectionReader(r, p.In, end-p.In)
	s := &stream{blob: newBlob(section, readSize), x: x, span: i, out: p.Out, limit: x.TarSize, hash: sha256.New(), passed: passed}
	s.blob.src.n = p.In
	if p.Window == nil {
		return s, s.nextMember()
	}
	window, err := unpack(p.Window)
	if err != nil {
		return nil, err
	}
	s.inflate(flate.WithResumeFrom(flate.InflateCheckpoint{BitOffset: p.Bits, Window: window}))
	return s, nil
}

// inflate starts inflating here.
func (s *stream) inflate(opts ...flate.ReaderOpt) {
	s.member = member{blob: s.blob, in: s.blob.pos(), out: s.out}
	if s.passed != nil {
		opts = append(opts, flate.WithEobCallback(func(at flate.InflateCheckpoint) {
			if p := s.member.end(at); !at.Final {
				s.passed(p)
			}
		}))
	}
	s.z = flate.NewReaderOpts(s.blob.Reader, opts...)
}

// nextMember goes on with the member that begins here.
func (s *stream) nextMember() error {
	if s.passed != nil {
		s.passed(Point{In: s.blob.pos(), Out: s.out})
	}
	if err := s.blob.header(); err != nil {
		return unexpected(err)
	}
	s.inflate()
	return nil
}

// endMember goes on behind the end of a member. Its checksum is that of more than was
// read of it.
func (s *stream) endMember() error {
	if _, err := s.blob.Discard(trailerSize); err != nil {
		return s.blob.fail(err)
	}
	return s.nextMember()
}

// Read reads up to the next point at most, and compares a span with its digest when
// it ends.
func (s *stream) Read(p []byte) (int, error) {
	for s.err == nil && s.out < s.limit && len(p) > 0 {
		end := s.x.spanEnd(s.span)
		n, err := s.z.Read(p[:min(int64(len(p)), end-s.out, s.limit-s.out)])
		s.out += int64(n)
		s.hash.Write(p[:n])
		switch {
		case n > 0 && s.out == end:
			if s.err = s.endSpan(); s.err != nil {
				return 0, s.err // and not what is wrong: who gets all that they want asks for no more
			}
		case err == io.EOF:
			s.err = s.endMember()
		case err != nil:
			s.err = s.blob.fail(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	switch {
	case len(p) == 0:
		return 0, nil
	case s.err != nil:
		return 0, s.err
	}
	return 0, io.EOF
}

// endSpan checks a span, which was read from its point on.
func (s *stream) endSpan() error {
	got := toc.Digest(s.hash.Sum(nil))
	if want := s.x.Points[s.span].Digest; got != want {
		return fmt.Errorf("gzip: span %d: %w: want %s, got %s", s.span, toc.ErrMalformed, want, got)
	}
	s.hash.Reset()
	s.span++
	return nil
}

// unexpected returns err, which an end is not to be.
func unexpected(err error) error {
	if err == io.EOF {
		return fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
	}
	return err
}
