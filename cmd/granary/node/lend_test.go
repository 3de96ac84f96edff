package node

import (
	"testing"

	"github.com/granary-oci/granary/toc"
)

func TestFilesInParts(t *testing.T) {
	known := toc.Digest{1}
	for name, is := range map[string]struct {
		extents []toc.Extent
		want    bool
	}{
		"two":            {[]toc.Extent{{Size: 3, Digest: known}, {Offset: 3, Size: 7, Digest: known}}, true},
		"one":            {[]toc.Extent{{Size: 10, Digest: known}}, false},
		"a gap":          {[]toc.Extent{{Size: 3, Digest: known}, {Offset: 4, Size: 6, Digest: known}}, false},
		"a hole behind":  {[]toc.Extent{{Size: 3, Digest: known}, {Offset: 3, Size: 6, Digest: known}}, false},
		"without digest": {[]toc.Extent{{Size: 3}, {Offset: 3, Size: 7, Digest: known}}, false},
	} {
		if got := inParts(&toc.Entry{Size: 10, Extents: is.extents}); got != is.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
