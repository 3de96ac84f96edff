package toc_test

import (
	"slices"
	"testing"

	"github.com/granary-oci/granary/toc"
)

// TestCut: extents in place of others are those of the same file, which keeps its digest.
func TestCut(t *testing.T) {
	var b toc.Builder
	whole := toc.Digest{1}
	for _, e := range []toc.Entry{
		{Name: "large", Type: toc.Regular, Size: 10, Digest: whole, Extents: []toc.Extent{{Size: 6, Start: 512, End: 518}, {Offset: 6, Size: 4, Start: 518, End: 522}}},
		{Name: "none", Type: toc.Regular},
		{Name: "small", Type: toc.Regular, Size: 2, Extents: []toc.Extent{{Size: 2, Start: 2048, End: 2050, Digest: toc.Digest{2}}}},
	} {
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	table, err := b.Done()
	if err != nil {
		t.Fatal(err)
	}
	halves, err := table.Cut(func(x toc.Extent) []toc.Extent {
		left, right := x, x
		left.Size /= 2
		right.Offset, right.Start, right.Size = x.Offset+left.Size, x.Start+left.Size, x.Size-left.Size
		return []toc.Extent{left, right}
	})
	if err != nil {
		t.Fatal(err)
	}
	for e := range halves.All() {
		before, ok := table.Lookup(e.Name)
		end := int64(0)
		for _, x := range e.Extents {
			if x.Offset != end || x.Start != before.Extents[0].Start+x.Offset {
				t.Errorf("%s: %+v", e.Name, e.Extents)
			}
			end += x.Size
		}
		if !ok || end != before.Size || e.Digest != before.Digest || len(e.Extents) != 2*len(before.Extents) {
			t.Errorf("%+v, before %+v", e, before)
		}
	}
	same, err := table.Cut(func(x toc.Extent) []toc.Extent { return []toc.Extent{x} })
	if err != nil {
		t.Fatal(err)
	}
	for e := range same.All() {
		if before, _ := table.Lookup(e.Name); !slices.Equal(e.Extents, before.Extents) || e.Digest != before.Digest {
			t.Errorf("%+v, before %+v", e, before)
		}
	}
}
