package rebuild

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

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
		if err := t.sift(b.Context(), bytes.NewReader(layer), int64(len(tar)), func(cdc.Chunk, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkOlder reads the chunks of an older layer one by one, in order, as whoever reads the files of a newer one does.
func BenchmarkOlder(b *testing.B) {
	p, content := layer(b, 300, 60_000)
	o := newSite(b, p, nil).LookAt([]OldLayer{{digest.FromBytes(p), func(context.Context) (Layer, error) {
		return Layer{bytes.NewReader(p), int64(len(p)), func() {}}, nil
	}}}, nil, Shelves{new(shelf), new(shelf)})
	m, err := cdc.Of(b.Context(), bytes.NewReader(content))
	if err != nil {
		b.Fatal(err)
	}
	<-o.ready
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		for i := range m.Chunks {
			if m.Chunks[i].Inline != nil {
				continue
			}
			o.read(b.Context(), m, []*arrival{{chunk: i}}, func(_ *arrival, p []byte) {
				if p == nil {
					b.Fatal("a chunk is not there")
				}
			})
		}
	}
}
