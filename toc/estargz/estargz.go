// Package estargz reads layers in eStargz: a tar in members of gzip, of which one
// begins with each file's content, and the table of contents as the tar's last file.
//
// The format is that of github.com/containerd/stargz-snapshotter, docs/estargz.md. The
// chunks' digests are checked by who reads them: see [toc.Open].
package estargz

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// tableName is the tar's file that has the table.
const tableName = "stargz.index.json"

// tailSize is how much of the layer's end is read at once: the footer, and a table that
// is small.
const tailSize = 64 << 10

// Open opens a layer. It is a [toc.Opener].
//
// A table whose digest the layer's annotations carry is checked against it. The error
// wraps [toc.ErrFormat] if the layer has no footer, or its table is in another image.
func Open(r io.ReaderAt, desc ocispec.Descriptor) (*toc.Layer, error) {
	want, err := toc.AnnotatedDigest(desc.Annotations)
	if err != nil {
		return nil, fmt.Errorf("estargz: %w", err)
	}
	f, err := find(r, desc.Size)
	if err != nil {
		return nil, fmt.Errorf("estargz: %w", err)
	}
	l, err := f.read(r, want)
	if err != nil {
		return nil, fmt.Errorf("estargz: table at %d: %w", f.start, err)
	}
	return l, nil
}

// table is where a layer has its table.
type table struct {
	start, end int64  // of the member, in the layer
	tail       []byte // what has been read of it, from its end
}

// find reads the layer's end.
func find(r io.ReaderAt, size int64) (*table, error) {
	tail := make([]byte, min(size, tailSize))
	from := size - int64(len(tail))
	if n, err := r.ReadAt(tail, from); n < len(tail) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("footer: read at %d: %w", from, err)
	}
	start, footer, err := parseFooter(tail)
	if err != nil {
		return nil, err
	}
	t := &table{start: start, end: size - footer}
	switch {
	case start >= t.end:
		return nil, fmt.Errorf("%w: a table at %d of a layer of %d bytes", toc.ErrMalformed, start, size)
	case t.end-start > toc.MaxPackedTOC:
		return nil, fmt.Errorf("%w: a table of %d bytes", toc.ErrLimit, t.end-start)
	}
	t.tail = tail[max(0, start-from) : int64(len(tail))-footer]
	return t, nil
}

// read reads the table, and checks it against its digest if that is known.
func (t *table) read(r io.ReaderAt, want toc.Digest) (*toc.Layer, error) {
	packed := toc.NewSection(r, t.start, t.end-int64(len(t.tail)))
	z, err := gzip.NewReader(io.MultiReader(packed, bytes.NewReader(t.tail)))
	if err != nil {
		return nil, packed.Cause(err)
	}
	files := tar.NewReader(io.LimitReader(z, toc.MaxTOCSize+1<<20)) // the tar has headers and padding
	h, err := files.Next()
	if err != nil {
		return nil, packed.Cause(err)
	}
	if toc.Clean(h.Name) != tableName {
		return nil, fmt.Errorf("%w: it is a file %q", toc.ErrMalformed, h.Name)
	}
	sum := sha256.New()
	contents, prefetch, err := toc.DecodeStargz(io.TeeReader(files, sum), t.start)
	if err != nil {
		return nil, packed.Cause(err)
	}
	if got := toc.Digest(sum.Sum(nil)); want.Known() && got != want {
		return nil, fmt.Errorf("%w: %s, but the manifest says %s", toc.ErrMalformed, got, want)
	}
	return &toc.Layer{TOC: contents, Inflater: inflater{r}, Digested: want.Known(), Prefetch: prefetch}, nil
}

// inflater reads what members of gzip hold.
type inflater struct{ r io.ReaderAt }

// decoders are those that are not in use.
var decoders = sync.Pool{New: func() any { return new(gzip.Reader) }}

// On implements [toc.Inflater].
func (l inflater) On(r io.ReaderAt) toc.Inflater { return inflater{r} }

// Inflate implements [toc.Inflater].
func (l inflater) Inflate(x toc.Extent, off int64) (io.ReadCloser, error) {
	s := x.Section(l.r)
	z := decoders.Get().(*gzip.Reader)
	// The inflater has a loop for a bufio.Reader that takes two thirds of the time.
	return s.Content(z, z.Reset(s.Reader), &x, off, func() { decoders.Put(z) })
}
