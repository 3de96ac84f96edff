package recipe

import (
	"bytes"
	"io"
	"os"
	"testing"
)

// tarball is the tar that GRANARY_BENCH_TAR names, or one that is made up.
func tarball(b *testing.B) []byte {
	b.Helper()
	name := os.Getenv("GRANARY_BENCH_TAR")
	if name == "" {
		return sample(4 << 20)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// Benchmark measures each family at the level that is most used. Nothing of it runs beside
// something else, so that MB/s are those of a second of CPU, of the tar.
func Benchmark(b *testing.B) {
	tar := tarball(b)
	for _, e := range []Encoder{{Go, 6}, {Go, 1}, {Klauspost, 5}, {Klauspost117, 5}, {Pgzip, 5}, {Pgzip117, 5}} {
		blob := packed(b, e, tar, len(tar))
		r := found(b, blob)
		b.Run("find/"+e.String(), func(b *testing.B) {
			b.SetBytes(int64(len(tar)))
			for b.Loop() {
				found(b, blob)
			}
		})
		b.Run("rebuild/"+e.String(), func(b *testing.B) {
			b.SetBytes(int64(len(tar)))
			for b.Loop() {
				if err := r.Rebuild(b.Context(), io.Discard, bytes.NewReader(tar)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
