package gzip

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/granary-oci/granary/toc/tarball"
)

// layer is the layer that GRANARY_BENCH_LAYER names, a file of tar+gzip, or a small
// one that is made up.
func layer(b *testing.B) []byte {
	b.Helper()
	name := os.Getenv("GRANARY_BENCH_LAYER")
	if name == "" {
		return compressed(b, bytes.Repeat(sample(b), 4)[:4<<20&^511], 6)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// BenchmarkBuild compares making an index with gunzip alone, and with what else the
// bytes of a layer go through when it is unpacked.
func BenchmarkBuild(b *testing.B) {
	blob := layer(b)
	reader := func(open func(io.Reader) (io.Reader, error), read func(io.Reader) error) func(*testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				r, err := open(bytes.NewReader(blob))
				if err != nil {
					b.Fatal(err)
				}
				if err := read(r); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	std := func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) }
	fast := func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }
	discard := func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	scan := func(r io.Reader) error { _, err := tarball.Scan(r); return err }
	b.Run("gunzip=std", reader(std, discard))
	b.Run("gunzip=klauspost", reader(fast, discard))
	b.Run("gunzip+scan=klauspost", reader(fast, scan))
	b.Run("index", func(b *testing.B) {
		var x *Index
		var err error
		for b.Loop() {
			if x, err = Build(bytes.NewReader(blob), tarball.Scan); err != nil {
				b.Fatal(err)
			}
		}
		size := len(encoded(b, x))
		windows := 0
		for _, p := range x.Points {
			windows += len(p.Window) + 40
		}
		b.ReportMetric(float64(x.TarSize)/1e6, "tar-MB")
		b.ReportMetric(float64(len(x.Points)), "points")
		b.ReportMetric(100*float64(size)/float64(x.TarSize), "%-of-tar")
		b.ReportMetric(100*float64(windows)/float64(x.TarSize), "%-windows")
	})
}
