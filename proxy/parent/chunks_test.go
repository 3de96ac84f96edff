package parent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// FuzzMapPart: whatever a parent sends, what is taken of it are digests of chunks that the blob has, and the rest is
// named as wrong.
func FuzzMapPart(f *testing.F) {
	d := digest.FromString("chunk")
	for _, chunks := range []string{"", `"` + string(d) + `"`, strings.Repeat(`"`+string(d)+`",`, 300) + `"x"`, `"sha512:00"`, "1"} {
		f.Add(fmt.Appendf(nil, `{"size":3145729,"chunkSize":1048576,"first":0,"chunks":[%s]}`, chunks), int64(3<<20+1), 0)
	}
	f.Add([]byte(`{"size":5,"chunkSize":1048576,"first":0,"chunks":[]}`), int64(3<<20), 0)
	f.Add([]byte(`{"size":`), int64(3<<20), 1)
	f.Fuzz(func(t *testing.T, text []byte, total int64, first int) {
		if total <= chunk.Size || total > chunk.MaxBlobSize || first < 0 || int64(first) > (total-1)/chunk.Size {
			return
		}
		of := chunk.Ref{Blob: digest.FromString("blob"), Total: total, Size: chunk.Size}
		all, err := parseMapPart(text, of, first)
		if err != nil {
			if !chunk.IsCorrupt(err) {
				t.Errorf("not named as wrong: %v", err)
			}
			return
		}
		if int64(first+len(all)) > (total-1)/chunk.Size+1 || len(all) > mapPart {
			t.Errorf("%d digests from %d on", len(all), first)
		}
		for _, d := range all {
			if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
				t.Errorf("%q", d)
			}
		}
	})
}

// TestAMapOfAnotherSize is wrong, and it is not known by whose fault.
func TestAMapOfAnotherSize(t *testing.T) {
	_, err := parseMapPart([]byte(`{"size":5,"chunkSize":1048576,"first":0,"chunks":[]}`), chunk.Ref{Total: 3 << 20, Size: chunk.Size}, 0)
	if !chunk.IsCorrupt(err) || !errors.Is(err, upstream.ErrOtherSize) {
		t.Error(err)
	}
}
