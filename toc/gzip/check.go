package gzip

import (
	"bytes"
	"fmt"
	"io"

	"github.com/granary-oci/granary/toc"
)

// Check inflates the span of point i, 0 ≤ i < len(Points), out of the layer, and
// compares it with what the index says: its digest, and the point at its end. If the
// point is right, so are they when it returns nil. The error wraps [toc.ErrMalformed]
// or io.ErrUnexpectedEOF if they are not, or is one of r.
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
	window, err := unpack(next.Window)
	if err != nil {
		return err
	}
	met := false
	s, err := x.resume(r, i, x.Size, func(p point) {
		met = met || p.In == next.In && p.Bits == next.Bits && p.Out == next.Out && bytes.Equal(p.window, window)
	})
	if err != nil {
		return err
	}
	s.limit = next.Out + 1 // by then the block or member before the point has ended
	if _, err := io.Copy(io.Discard, s); err != nil {
		return err
	}
	if !met {
		return fmt.Errorf("gzip: span %d: %w: it does not end at the next point", i, toc.ErrMalformed)
	}
	return nil
}
