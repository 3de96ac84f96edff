package squashfs

import (
	"testing"

	"github.com/granary-oci/granary/toc"
)

func TestAPackedBlockNeverLooksStored(t *testing.T) {
	for _, x := range []toc.Extent{
		{Size: 100, Start: 1000, End: 1050},
		{Size: 100, Start: 1000, End: 1100},
		{Offset: 4096, Size: 100, Start: 1000, End: 1100, Inner: 7},
		{Offset: 4096, Size: 2, Start: 1000, End: 1002},
	} {
		all, err := addPacked(nil, x)
		if err != nil {
			t.Fatal(err)
		}
		size := int64(0)
		for _, part := range all {
			if stored(part) {
				t.Errorf("%+v of %+v looks stored", part, x)
			}
			if part.Offset-x.Offset != size || part.Inner-x.Inner != size || part.Start != x.Start || part.End != x.End {
				t.Errorf("%+v does not follow in %+v", part, x)
			}
			size += part.Size
		}
		if size != x.Size {
			t.Errorf("%d bytes of %+v", size, x)
		}
	}
	if _, err := addPacked(nil, toc.Extent{Size: 1, Start: 1, End: 2}); err == nil {
		t.Error("a block of one byte was compressed into one")
	}
}
