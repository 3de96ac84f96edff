package gzip

import (
	"bytes"
	"fmt"
	"io"

	"github.com/granary-oci/granary/toc"
)

// Check inflates the span of point i, 0 ≤ i < len(Points), out of the layer, and
// compares it with its digest. It inflates 32 KiB on, and from the next point too: its
// window is right if the same comes out, as nothing further behind can refer to it. A
// point is right if what inflates from it is what is there in the layer. If that of
// the span is, and Check returns nil, so are the digest and the point at its end. The
// error wraps [toc.ErrMalformed] or io.ErrUnexpectedEOF if they are not, or is one
// of r.
func (x *Index) Check(r io.ReaderAt, i int) error {
	if err := x.check(); err != nil {
		return err
	}
	if i+1 == len(x.Points) {
		s, err := x.resume(r, i, x.Size, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, s)
		return err
	}
	next := x.Points[i+1]
	met := false
	s, err := x.resume(r, i, x.Size, func(p Point) {
		met = met || p.In == next.In && p.Bits == next.Bits && p.Out == next.Out
	})
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, s, next.Out-s.out); err != nil {
		return unexpected(err)
	}
	ahead := min(maxWindow, x.TarSize-next.Out)
	want, err := s.next(ahead) // with which the block or member before the point has ended
	if err != nil {
		return err
	}
	if s, err = x.resume(r, i+1, x.Size, nil); err != nil {
		return err
	}
	got, err := s.next(ahead)
	if err != nil {
		return err
	}
	if !met || !bytes.Equal(got, want) {
		return fmt.Errorf("gzip: span %d: %w: it does not end at the next point", i, toc.ErrMalformed)
	}
	return nil
}

// next reads n bytes.
func (s *stream) next(n int64) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(s, p)
	return p, unexpected(err)
}
