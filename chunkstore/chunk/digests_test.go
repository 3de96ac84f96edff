package chunk_test

import (
	"bytes"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

func FuzzReadDigests(f *testing.F) {
	f.Add([]byte{}, 0)
	f.Add(bytes.Repeat([]byte{7}, 2*chunk.DigestSize), 2)
	f.Add(bytes.Repeat([]byte{7}, 2*chunk.DigestSize-1), 2)
	f.Add([]byte("short"), -1)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		all, err := chunk.ReadDigests(p, n)
		if err != nil {
			return
		}
		if all.Len() != n {
			t.Fatalf("%d digests of %d", all.Len(), n)
		}
		for i := range n {
			d := all.At(i)
			if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
				t.Errorf("digest %d is %q", i, d)
			}
		}
	})
}
