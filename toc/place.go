package toc

import "slices"

// Place returns the same table with its extents elsewhere in the layer: place says
// for each where what it is read from starts and ends. Content that was made a table
// of as it passed by gets its place so, once that is known.
func (t *TOC) Place(place func(x Extent) (start, end int64)) *TOC {
	placed := *t
	placed.extents = slices.Clone(t.extents)
	for i := range placed.extents {
		x := &placed.extents[i]
		x.Start, x.End = place(*x)
	}
	return &placed
}
