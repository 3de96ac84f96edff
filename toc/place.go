package toc

import (
	"fmt"
	"slices"
)

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

// Cut returns the table with other extents in place of each. Those are of the same bytes of the file, in order and
// without gaps. The error wraps [ErrLimit] if they are too many.
func (t *TOC) Cut(cut func(x Extent) []Extent) (*TOC, error) {
	other := *t
	other.records, other.extents, other.whole = slices.Clone(t.records), nil, nil
	for i := range other.records {
		r := &other.records[i]
		first := uint32(len(other.extents))
		for _, x := range t.extents[r.first : r.first+r.count] {
			other.extents = append(other.extents, cut(x)...)
		}
		if len(other.extents) > MaxExtents {
			return nil, fmt.Errorf("%w: more than %d extents", ErrLimit, MaxExtents)
		}
		if e := t.At(i); e.Digest.Known() && r.count > 0 {
			if other.whole == nil {
				other.whole = make(map[uint32]Digest)
			}
			other.whole[first] = e.Digest
		}
		r.first, r.count = first, uint32(len(other.extents))-first
	}
	return &other, nil
}
