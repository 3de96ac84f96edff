package recipe

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/pgzip"

	"github.com/granary-oci/granary/toc/treetest"
)

// noise is content that does not compress.
func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 56)
	}
	return b
}

// sample is n bytes that compress as layers do, and on whose beginning the encoders differ: bytes of which some
// are more frequent, and runs of what came before.
func sample(n int) []byte {
	b := make([]byte, 0, n+64)
	seed := uint64(1)
	next := func(m int) int {
		seed = seed*6364136223846793005 + 1442695040888963407
		return int((seed >> 33) % uint64(m))
	}
	for len(b) < n {
		if back := 1 + next(40_000); back <= len(b) && next(8) == 0 {
			from := len(b) - back
			b = append(b, b[from:min(from+4+next(60), len(b))]...)
			continue
		}
		b = append(b, byte(next(256)*next(256)*next(256)>>16))
	}
	return b[:n]
}

// producer compresses as some program does.
type producer struct {
	name    string
	encoder Encoder
	open    func(w io.Writer) io.WriteCloser
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// goLevel is Go's gzip, as BuildKit, Docker, containerd, kaniko and ko use it at one level or another.
func goLevel(level, is int) producer {
	return producer{fmt.Sprintf("go %d", level), Encoder{Go, is}, func(w io.Writer) io.WriteCloser { return must(gzip.NewWriterLevel(w, level)) }}
}

func klauspostLevel(level, is int) producer {
	return producer{fmt.Sprintf("klauspost %d", level), Encoder{Klauspost, is}, func(w io.Writer) io.WriteCloser { return must(kgzip.NewWriterLevel(w, level)) }}
}

func pgzipLevel(level, is int) producer {
	return producer{fmt.Sprintf("pgzip %d", level), Encoder{Pgzip, is}, func(w io.Writer) io.WriteCloser { return must(pgzip.NewWriterLevel(w, level)) }}
}

// producers are the libraries that are linked into the programs which make most images.
func producers() (all []producer) {
	all = append(all, goLevel(-1, 6), klauspostLevel(-1, 5), pgzipLevel(-1, 5))
	for level := -2; level <= 9; level++ {
		if level != -1 {
			all = append(all, goLevel(level, level), klauspostLevel(level, level), pgzipLevel(level, level))
		}
	}
	return all
}

func (p producer) pack(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := p.open(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// packed is content as one of our own encoders packs it, in members of n bytes.
func packed(t testing.TB, e Encoder, content []byte, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	p, err := e.packer(&b)
	if err != nil {
		t.Fatal(err)
	}
	header := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, osUnknown}
	if e.Family != Go {
		copy(header[4:], zeroTime)
	}
	header[8] = map[int]byte{1: fastest, 9: slowest}[e.Level]
	for first := true; first || len(content) > 0; first = false {
		k := min(n, len(content))
		if err := p.begin(header); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write(content[:k]); err != nil {
			t.Fatal(err)
		}
		if err := p.end(e.Family >= Pgzip); err != nil {
			t.Fatal(err)
		}
		content = content[k:]
	}
	return b.Bytes()
}

func find(blob []byte) (*Recipe, error) {
	return Find(context.Background(), bytes.NewReader(blob), int64(len(blob)))
}

func found(t testing.TB, blob []byte) *Recipe {
	t.Helper()
	r, err := find(blob)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func unpacked(t testing.TB, blob []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	tar, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return tar
}

// checkRebuilt holds what a recipe makes, after a trip through its stored form, to be the blob.
func checkRebuilt(t testing.TB, r *Recipe, tar, blob []byte) {
	t.Helper()
	stored, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r, err = Decode(stored)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.Rebuild(t.Context(), &b, bytes.NewReader(tar)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), blob) {
		t.Errorf("%v makes %d bytes that are not the blob's %d", r.Encoder, b.Len(), len(blob))
	}
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tarOf is a tar of so many files.
func tarOf(t testing.TB, files int) []byte {
	t.Helper()
	p, err := treetest.Tar(files, func(i int) (string, []byte) { return fmt.Sprintf("file%04d", i), sample(100 + 50*i) })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sectionOf(p []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p)))
}
