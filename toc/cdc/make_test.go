package cdc

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/toc"
)

// file is an entry of a tar that is made for a test.
type file struct {
	name    string
	content []byte
	link    string // a symlink to it
	format  tar.Format
}

// tarOf makes a tar of files that are as old as age says.
func tarOf(t testing.TB, age time.Duration, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content)), Format: f.format, ModTime: time.Unix(1_700_000_000, 0).Add(-age)}
		if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// rawHeader is a header as archive/tar does not write it.
func rawHeader(flag byte, size int, patch func(b []byte)) []byte {
	b := make([]byte, 512)
	copy(b, "name")
	copy(b[124:136], fmt.Appendf(nil, "%011o\x00", size))
	b[156] = flag
	if patch != nil {
		patch(b)
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Appendf(nil, "%06o\x00 ", sum))
	return b
}

// filled is p and what fills up its last block.
func filled(p []byte) []byte { return append(bytes.Clone(p), make([]byte, -len(p)&511)...) }

// layer is a tar with files of all sizes.
func layer(t testing.TB, age time.Duration) []byte {
	t.Helper()
	var files []file
	for i := range 200 {
		files = append(files, file{name: fmt.Sprintf("d/%d", i), content: noise(i * i)})
	}
	return tarOf(t, age, append(files,
		file{name: "d/"}, file{name: "l", link: "d"}, file{name: "empty"},
		file{name: "small", content: noise(NormalSize)},
		file{name: strings.Repeat("long/", 60) + "f", content: []byte("f"), format: tar.FormatGNU},
		file{name: strings.Repeat("long/", 60) + "g", content: []byte("g"), format: tar.FormatPAX},
		file{name: "large", content: noise(NormalSize + 1)},
		file{name: "larger", content: noise(1 << 20)},
		file{name: "last", content: []byte("the end")},
	)...)
}

// mapOf returns the map of p, after it has been held to what all maps are.
func mapOf(t testing.TB, p []byte) *Map {
	t.Helper()
	m, err := Of(t.Context(), bytes.NewReader(p))
	if err != nil {
		t.Fatal(err)
	}
	at, inline := int64(0), false
	for i, c := range m.Chunks {
		if c.Offset != at || c.Size < 1 || c.Size > MaxSize || c.Offset+c.Size > int64(len(p)) {
			t.Fatalf("chunk %d, at %d, is %d bytes at %d of %d", i, at, c.Size, c.Offset, len(p))
		}
		if c.Inline != nil && (inline || c.Size > MaxInline || c.Digest.Known()) {
			t.Fatalf("chunk %d, of %d bytes, is inline", i, c.Size)
		}
		at, inline = at+c.Size, c.Inline != nil
		if !c.Fits(p[c.Offset:at]) {
			t.Fatalf("chunk %d is not what stands there", i)
		}
	}
	if at != int64(len(p)) || m.Size() != at {
		t.Fatalf("a map of %d bytes, %d as it says, of %d", at, m.Size(), len(p))
	}
	return m
}

// digestsOf returns the sizes of the chunks that m has not inline.
func digestsOf(m *Map) map[toc.Digest]int64 {
	all := make(map[toc.Digest]int64)
	for _, c := range m.Chunks {
		if c.Inline == nil {
			all[c.Digest] = c.Size
		}
	}
	return all
}

// fresh returns how many chunks of m are not in old.
func fresh(m, old *Map) (n int) {
	had := digestsOf(old)
	for d := range digestsOf(m) {
		if _, ok := had[d]; !ok {
			n++
		}
	}
	return n
}

// contents returns the contents of a tar, as archive/tar reads them, up to where that fails.
func contents(p []byte) (all [][]byte) {
	for r := tar.NewReader(bytes.NewReader(p)); ; {
		h, err := r.Next()
		if err != nil {
			return all
		}
		q, err := io.ReadAll(r)
		if err == nil && h.Size > 0 {
			all = append(all, q)
		}
	}
}
