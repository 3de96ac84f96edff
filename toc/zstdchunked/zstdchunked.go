// Package zstdchunked reads layers in zstd:chunked: a tar in frames of zstd (RFC 8878),
// of which one begins with each chunk of a file, and after them the table of contents
// in a frame that decoders skip.
//
// There are two dialects, which differ in their footer and the names of their
// annotations: that of github.com/containers/storage, pkg/chunked, and that of
// github.com/containerd/stargz-snapshotter, estargz/zstdchunked. The chunks' digests are
// checked by who reads them: see [toc.Open].
package zstdchunked

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// Open opens a layer. It is a [toc.Opener].
//
// Where the table is the annotations say, or else the footer. It is checked against
// every digest of it that the annotations carry: so tables of which each is checked by
// another client cannot differ. The error wraps [toc.ErrFormat] if neither annotations
// nor a footer tell where the table is.
//
// The copy of the tar's headers that containers/storage adds (tar-split) is not read.
func Open(r io.ReaderAt, desc ocispec.Descriptor) (*toc.Layer, error) {
	n, err := annotated(desc.Annotations)
	if err != nil {
		return nil, fmt.Errorf("zstd:chunked: %w", err)
	}
	if n.at == (position{}) {
		if n.at, err = readFooter(r, desc.Size); err != nil {
			return nil, fmt.Errorf("zstd:chunked: footer: %w", err)
		}
	}
	if err := n.at.check(desc.Size); err != nil {
		return nil, fmt.Errorf("zstd:chunked: %w", err)
	}
	l, err := n.read(r)
	if err != nil {
		return nil, fmt.Errorf("zstd:chunked: table at %d: %w", n.at.table.offset, err)
	}
	return l, nil
}

// read reads the table, and checks it against the digests that are known of it.
func (n *notes) read(r io.ReaderAt) (*toc.Layer, error) {
	where := n.at.table
	s := toc.NewSection(r, where.offset, where.offset+where.size)
	packed, raw := sha256.New(), sha256.New()
	z := decoders.Get().(*decoder)
	defer z.free()
	if err := z.Reset(io.TeeReader(s, packed)); err != nil {
		return nil, s.Cause(err)
	}
	text := &io.LimitedReader{R: z, N: where.rawSize + 1}
	contents, prefetch, err := toc.DecodeStargz(io.TeeReader(text, raw), where.offset-frameHeader)
	if err != nil {
		return nil, s.Cause(err)
	}
	if text.N != 1 {
		return nil, fmt.Errorf("%w: %d bytes, but it should have %d", toc.ErrMalformed, where.rawSize+1-text.N, where.rawSize)
	}
	for _, c := range []struct {
		of   string
		want toc.Digest
		got  hash.Hash
	}{{"compressed", n.packed, packed}, {"inflated", n.raw, raw}} {
		if got := toc.Digest(c.got.Sum(nil)); c.want.Known() && got != c.want {
			return nil, fmt.Errorf("%w: %s it is %s, but the manifest says %s", toc.ErrMalformed, c.of, got, c.want)
		}
	}
	return &toc.Layer{TOC: contents, Inflater: inflater{r}, Digested: n.packed.Known() || n.raw.Known(), Prefetch: prefetch}, nil
}

// inflater reads what frames of zstd hold.
type inflater struct{ r io.ReaderAt }

// On implements [toc.Inflater].
func (l inflater) On(r io.ReaderAt) toc.Inflater { return inflater{r} }

// Inflate implements [toc.Inflater].
func (l inflater) Inflate(x toc.Extent, off int64) (io.ReadCloser, error) {
	s := x.Section(l.r)
	z := decoders.Get().(*decoder)
	return s.Content(z, z.Reset(s), &x, off, z.free)
}
