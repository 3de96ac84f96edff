package tarball

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/toc"
)

var when = time.Unix(1700000000, 123456789)

// item adds something to a tar.
type item func(t *testing.T, w *tar.Writer)

func tarOf(t *testing.T, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, add := range items {
		add(t, w)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func entry(h tar.Header, content string) item {
	return func(t *testing.T, w *tar.Writer) {
		t.Helper()
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
}

func dir(name string) item {
	return entry(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, "")
}

func file(name, content string) item {
	return entry(tar.Header{Typeflag: tar.TypeReg, Name: name}, content)
}

func link(typ byte, name, target string) item {
	return entry(tar.Header{Typeflag: typ, Name: name, Linkname: target}, "")
}

func symlink(name, target string) item  { return link(tar.TypeSymlink, name, target) }
func hardlink(name, target string) item { return link(tar.TypeLink, name, target) }

// raw is a header block and its content, as nobody but a test writes them.
type raw struct {
	name, size string // the size in octal
	flag       byte
	magic      string
	patch      func(b []byte)
	content    string
}

func (r raw) bytes() []byte {
	b := make([]byte, blockSize)
	copy(b, r.name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], r.size)
	copy(b[136:], "14524741000\x00")
	b[156] = r.flag
	copy(b[257:], r.magic)
	if r.patch != nil {
		r.patch(b)
	}
	sum := 8 * int(' ')
	for i, c := range b {
		if i < 148 || i >= 156 {
			sum += int(c)
		}
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	b = append(b, r.content...)
	return append(b, make([]byte, -len(r.content)&(blockSize-1))...)
}

func rawTar(all ...raw) []byte {
	var b []byte
	for _, r := range all {
		b = append(b, r.bytes()...)
	}
	return append(b, make([]byte, 2*blockSize)...)
}

// list says what is in a table, a line each.
func list(t *toc.TOC) string {
	var b strings.Builder
	for e := range t.All() {
		fmt.Fprintf(&b, "%s %q", e.Type, e.Name)
		if e.Type == toc.Regular {
			fmt.Fprintf(&b, " %d", e.Size)
		}
		if e.Link != "" {
			fmt.Fprintf(&b, " -> %q", e.Link)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// random is content that does not repeat.
func random(n int, seed uint64) string {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 56)
	}
	return string(b)
}
