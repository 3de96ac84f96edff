// Package gzip reads any file out of a layer that is a tar in gzip, without the rest
// and without conversion.
//
// Deflate has no way in but its beginning, unless one knows where a block begins and
// the 32 KiB that came out before it. An [Index] has such points about every 300 KiB
// of the tar, and the tar's table. [Build] makes it as the layer passes by once;
// [Open] gives the layer with it.
//
// Of those 32 KiB, the window, what follows refers to a small part, most often less than a
// tenth. The rest is stored as zeros, which compress to nothing: such a window is sparse,
// and points can be near each other in an index that stays small. Whoever inflates from
// a point need not know. An index whose windows are all there is as good.
//
// # Trust
//
// Build checks all that gzip can check, and its index is as good as the bytes that it
// was built from: it says which blob those were. An index from elsewhere may lie. Its
// content digests are claims, to be believed as far as whoever sent it. What inflates
// between two points has a digest too, and not what is compressed: then each span
// can be checked by itself against the blob ([Index.Check]), and since the first
// begins with nothing and each proves the point at its end, checked spans from the
// first on prove all that is said about them.
//
// A digest alone does not prove a window: one that lacks a byte gives another content, and
// whoever left it out may have made the digest of that. So the point at a span's end is
// proven by the span: what inflates from the point must be what inflates on from before it.
//
// A span that is read from its point to its end is compared with its digest on the way.
package gzip

import (
	"fmt"
	"sort"

	"github.com/granary-oci/granary/toc"
)

const (
	// Span is how much of the tar is between points, or a little more: a point is
	// where a block of deflate begins, of which most inflate to 10 to 200 KiB. It is
	// half of that before a member's beginning, which costs no window. What is read for
	// nothing grows with it, and the index shrinks: so it is 0.75 % of a Debian, 0.9 % of
	// a Go installation, 0.96 % of Python's packages. Where files are very small it is
	// their table that makes it larger.
	Span = 288 << 10

	maxWindow = 32 << 10 // of deflate (RFC 1951 section 2)
	lookahead = 4        // bytes that the inflater reads behind the end of a block
)

// Point is where inflating may start.
type Point struct {
	In   int64 // the byte of the blob where it starts
	Bits uint8 // bits of that byte, the lower ones, that are still of what is before
	Out  int64 // the byte of the tar that comes out first
	// Window is what came out before, up to 32 KiB, in a frame of zstd. What is not
	// referred to from behind the point may be zero. Without a window the point is at
	// the beginning of a gzip member, its header included.
	Window []byte
	// Digest is that of what comes out from here to the next point, or to the end.
	Digest toc.Digest
}

// Index is what is known of a layer in gzip. It is not to be changed.
type Index struct {
	Blob    toc.Digest // of the layer, compressed
	Size    int64      // of the layer
	DiffID  toc.Digest // of the tar
	TarSize int64
	Points  []Point // in order; the first is the layer's beginning
	// Table has the tar's entries. Start and End of an extent are the bytes of the
	// layer that it takes to read it, and Inner is where in the tar it is.
	Table *toc.TOC
}

// find returns the last point that what is at out in the tar can be read from.
func (x *Index) find(out int64) int {
	return sort.Search(len(x.Points), func(i int) bool { return x.Points[i].Out > out }) - 1
}

// Before returns the last point that what is at out, 0 ≤ out, in the tar can be inflated from.
func (x *Index) Before(out int64) Point { return x.Points[x.find(out)] }

// end returns the byte of the layer up to which it is read for the tar up to out.
func (x *Index) end(out int64) int64 {
	i := sort.Search(len(x.Points), func(i int) bool { return x.Points[i].Out >= out })
	if i == len(x.Points) {
		return x.Size
	}
	return min(x.Size, x.Points[i].In+lookahead)
}

// guess returns the byte of the layer up to which it is about to be read for the tar up
// to out, as if a span were packed evenly. It is so much more that few spans are not
// taken as a whole: a second request takes longer, and what is near may be read next.
func (x *Index) guess(out int64) int64 {
	i := max(x.find(out-1), 0)
	p, end := x.Points[i], x.end(x.spanEnd(i))
	share := float64(out-p.Out) / float64(max(x.spanEnd(i)-p.Out, 1))
	return min(end, p.In+int64(share*float64(end-p.In))+readSize)
}

// spanEnd returns the byte of the tar where the span of point i ends.
func (x *Index) spanEnd(i int) int64 {
	if i+1 < len(x.Points) {
		return x.Points[i+1].Out
	}
	return x.TarSize
}

// place returns the table with the extents where the points say.
func (x *Index) place(table *toc.TOC) *toc.TOC {
	return table.Place(func(e toc.Extent) (start, end int64) {
		return x.Points[x.find(e.Inner)].In, x.end(e.Inner + e.Size)
	})
}

// check reports what of an index cannot be.
func (x *Index) check() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("gzip index: %w: "+format, append([]any{toc.ErrMalformed}, a...)...)
	}
	switch {
	case x.Size < 0 || x.TarSize < 0 || x.TarSize > maxTar || !x.Blob.Known() || !x.DiffID.Known() || x.Table == nil:
		return bad("a blob of %d bytes, a tar of %d", x.Size, x.TarSize)
	case len(x.Points) == 0 || x.Points[0].In != 0 || x.Points[0].Out != 0 || x.Points[0].Window != nil:
		return bad("no point at the beginning")
	}
	last := Point{In: -1, Out: -1}
	for i, p := range x.Points {
		if p.In <= last.In || p.In > x.Size || p.Out <= last.Out || i > 0 && p.Out >= x.TarSize || p.Bits > 7 || p.Window == nil && p.Bits > 0 {
			return bad("point %d at byte %d bit %d for byte %d", i, p.In, p.Bits, p.Out)
		}
		last = p
	}
	for e := range x.Table.All() {
		for _, c := range e.Extents {
			if c.Inner > x.TarSize || c.Size > x.TarSize-c.Inner {
				return bad("content at %d of a tar of %d bytes", c.Inner, x.TarSize)
			}
		}
	}
	return nil
}

// maxTar bounds the size of a tar: 1 TiB. Sums of sizes stay far from overflowing.
const maxTar = 1 << 40
