package gzip

import (
	"archive/tar"
	"bytes"
	stdflate "compress/flate"
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/tarball"
)

// sample is a tar of about 1.2 MB whose content compresses as layers do.
func sample(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range 40 {
		p := text(30_000, uint64(i))
		if i%7 == 0 {
			p = noise(30_000, uint64(i))
		}
		writeFile(t, w, fmt.Sprintf("d/file%02d", i), p)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tarOf(t testing.TB, name string, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	writeFile(t, w, name, p)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeFile(t testing.TB, w *tar.Writer, name string, p []byte) {
	t.Helper()
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(p)), ModTime: time.Unix(1700000000, 0)}
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
}

// noise is content that does not compress.
func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 56)
	}
	return b
}

// text is content that compresses to about a third.
func text(n int, seed uint64) []byte {
	var b []byte
	for len(b) < n {
		seed = seed*6364136223846793005 + 1442695040888963407
		b = fmt.Appendf(b, "the %x of %d;\n", seed>>40, seed>>58)
	}
	return b[:n]
}

// compressed returns p in one gzip member.
func compressed(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	return closed(t, w, p, &b)
}

func stdCompressed(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "layer.tar", "a comment", []byte("extra")
	return closed(t, w, p, &b)
}

func closed(t testing.TB, w io.WriteCloser, p []byte, b *bytes.Buffer) []byte {
	t.Helper()
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// flushed is as pigz writes: one member in which an empty stored block follows every
// n bytes.
func flushed(t testing.TB, p []byte, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, stdflate.DefaultCompression)
	if err != nil {
		t.Fatal(err)
	}
	for ; len(p) > n; p = p[n:] {
		if _, err := w.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return closed(t, w, p, &b)
}

// members is p in members of n bytes each, with empty ones between.
func members(t testing.TB, p []byte, n int) []byte {
	t.Helper()
	var b []byte
	for len(p) > 0 {
		k := min(n, len(p))
		b = append(b, compressed(t, p[:k], 1)...)
		b = append(b, compressed(t, nil, 1)...)
		p = p[k:]
	}
	return b
}

// smallSpan makes many points in a small tar.
const smallSpan = 128 << 10

func indexed(t testing.TB, blob []byte) *Index {
	t.Helper()
	x, err := build(bytes.NewReader(blob), tarball.Scan, smallSpan)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func open(t testing.TB, blob []byte, x *Index) *toc.Layer {
	t.Helper()
	l, err := Open(bytes.NewReader(blob), ocispec.Descriptor{Size: int64(len(blob)), Digest: x.Blob.OCI()}, x, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
