package rebuild

import (
	"bytes"
	"os"
	"testing"

	"github.com/granary-oci/granary/toc/cdc"
)

// BenchmarkSift reads an older layer, of the tar that GRANARY_BENCH_TAR names or one that is made up, in which all is wanted but
// the last chunk. Bytes are those of the tar.
func BenchmarkSift(b *testing.B) {
	tar := version(b, 1)
	if name := os.Getenv("GRANARY_BENCH_TAR"); name != "" {
		var err error
		if tar, err = os.ReadFile(name); err != nil {
			b.Fatal(err)
		}
	}
	layer := pack(b, tar, goGzip)
	m, err := cdc.Of(b.Context(), bytes.NewReader(append(bytes.Clone(tar), words(30_000, [32]byte{5})...)))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(tar)))
	for b.Loop() {
		f, err := os.CreateTemp(b.TempDir(), "tar")
		if err != nil {
			b.Fatal(err)
		}
		t, err := newMosaic(m, f)
		if err != nil {
			b.Fatal(err)
		}
		if err := t.sift(b.Context(), bytes.NewReader(layer), int64(len(tar))); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}
