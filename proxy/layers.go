package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/toc"
)

// Layer is a layer of a repository, open for reading.
type Layer struct {
	*lazy.Layer
	blob  *Blob
	bytes layerReader // what its files are read from: its bytes, or those of its tar
	files *contents   // that are kept, or had from others; nil if nothing is kept
}

// layerReader is what files of a layer are read from, for as long as a context lives, and as urgently as
// that says.
type layerReader interface {
	io.ReaderAt
	toc.Expecter
	context() context.Context
	on(ctx context.Context) layerReader
}

// on returns the layer as it is read for as long as another context lives, and as urgently
// as that says. It is released with l.
func (l *Layer) on(ctx context.Context) *Layer {
	other := l.from(l.bytes.on(ctx))
	if l.files != nil {
		files := *l.files
		files.ctx = ctx
		other.files = &files
	}
	return other
}

// from returns the layer as it is read from somewhere.
func (l *Layer) from(bytes layerReader) *Layer {
	opened := *l.Layer
	opened.Layer = opened.On(bytes)
	return &Layer{&opened, l.blob, bytes, l.files}
}

// Release is to be called when the layer has been read.
func (l *Layer) Release() { l.blob.Release() }

// Content returns the content of a regular file of the layer.
func (l *Layer) Content(e *toc.Entry) *toc.Content {
	if l.files == nil {
		return toc.Open(l.Layer.Layer, e, nil)
	}
	return toc.Open(l.Layer.Layer, e, l.files)
}

// expect says that size bytes at off of a file are about to be read, which may be of
// several extents.
func (l *Layer) expect(e *toc.Entry, off, size int64) {
	if l.shared() && l.Map == nil || len(e.Extents) < 2 || l.keepsWhole(e, off) {
		return
	}
	var missing []toc.Extent
	for _, x := range e.Extents {
		if x.Inner == 0 && x.Offset < off+size && off < x.Offset+x.Size && (l.files == nil || !x.Digest.Known() || !l.files.Has(x.Digest, x.Size)) {
			missing = append(missing, x)
		}
	}
	switch {
	case l.shared():
		l.expectShared(e, missing)
	case len(missing) > 1:
		toc.Expect(l.bytes, missing[0].Start, missing[len(missing)-1].End)
	}
}

// keepsWhole reports whether what a file has at off is kept as a part of the whole, and
// may be read.
func (l *Layer) keepsWhole(e *toc.Entry, off int64) bool {
	if l.files == nil || !e.Digest.Known() {
		return false
	}
	_, err := l.files.Readable.ReadAt(e.Digest, e.Size, make([]byte, 1), off)
	return err == nil
}

// shared reports whether other members are asked for files of the layer.
func (l *Layer) shared() bool { return l.files != nil && l.files.shared() }

// Layer opens a layer by its table of contents, for as long as ctx lives. manifest,
// if it is not empty, is a manifest of the repository that names the layer: what its
// annotations say of the layer holds.
func (p *Repository) Layer(ctx context.Context, d, manifest digest.Digest) (*Layer, error) {
	desc := ocispec.Descriptor{Digest: d}
	if manifest != "" {
		var err error
		if desc, err = p.layerIn(ctx, d, manifest); err != nil {
			return nil, err
		}
	}
	b, err := p.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	of := LayerRef{d, manifest}
	source, unpacked := layerBytes{p, b}, p.unpacked(b, p.contents(context.WithoutCancel(ctx), of))
	opened, err := p.registry.cfg.Layers.Open(ctx, lazy.Request{Host: p.Host, Layer: desc, Source: source, Complete: b.Proven, Unpacked: unpacked, Ask: p.askDerived(of)})
	if err != nil {
		b.Release()
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	layer := &Layer{opened, b, nil, p.contents(ctx, of)}
	if opened.Map != nil {
		tar := unpacked.(unpackable).readerAt(ctx, opened.Map)
		tar.known = opened.Borrowed
		return layer.from(tar), nil
	}
	bytes := source.readerAt(ctx)
	bytes.contents = digested(opened.Format)
	return layer.from(bytes), nil
}

// askDerived returns what asks another member for what is derived from a layer, or
// nil if none is to be asked.
func (p *Repository) askDerived(of LayerRef) func(context.Context, lazy.Kind) ([]byte, error) {
	peers := p.peers()
	if peers == nil || peers.Alone() || p.maker || p.registry.cfg.Direct != nil {
		return nil
	}
	in := p.in(p.identities()[0])
	return func(ctx context.Context, kind lazy.Kind) ([]byte, error) {
		return peers.Derived(ctx, in, string(kind), of)
	}
}

// Derived returns an object that is derived from a layer and kept here, for another
// member, which has seen that it may have it.
func (r *Registry) Derived(ctx context.Context, kind string, layer digest.Digest) ([]byte, error) {
	return r.cfg.Layers.Derived(ctx, lazy.Kind(kind), layer)
}

// CheckLayer compares what a layer says of itself with the layer, all of which is
// stored.
func (r *Registry) CheckLayer(ctx context.Context, d digest.Digest, size int64) {
	m, err := chunk.Grid(d, size)
	if err != nil {
		return
	}
	b := chunk.NewBlob(m, r.cfg.Store, chunk.BlobConfig{Window: chunk.StripeSize, Budget: r.cfg.Budget})
	r.report(r.cfg.Layers.Check(ctx, d, storedBytes{b}))
}

// IndexLayer makes what is needed to read single files of a layer, all of which is
// stored, if it is a layer that needs that and no other member answers for it.
func (r *Registry) IndexLayer(ctx context.Context, d digest.Digest, size int64) {
	if peers := r.cfg.Peers; peers != nil && !peers.Derives(string(lazy.KindGzip), d) || !r.isLayer(d) {
		return
	}
	m, err := chunk.Grid(d, size)
	if err != nil {
		return
	}
	b := chunk.NewBlob(m, r.cfg.Store, chunk.BlobConfig{Window: chunk.StripeSize, Budget: r.cfg.Budget})
	_, err = r.cfg.Layers.Open(ctx, lazy.Request{Host: r.cfg.Catalog.Supplier(d), Layer: ocispec.Descriptor{Digest: d}, Source: storedBytes{b}})
	if !errors.Is(err, toc.ErrUnsupported) {
		r.report(err)
	}
}

// isLayer reports whether a manifest names a blob as a tar of some kind.
func (r *Registry) isLayer(d digest.Digest) bool {
	for _, home := range r.cfg.Catalog.Homes(d) {
		if m, ok := r.cfg.Catalog.Member(home, d); ok && strings.Contains(m.MediaType, ".tar") {
			return true
		}
	}
	return false
}

// storedBytes are the bytes of a layer that is stored.
type storedBytes struct{ *chunk.Blob }

func (b storedBytes) Stream(ctx context.Context) io.ReadCloser { return b.Open(ctx) }

// layerIn returns the descriptor that a manifest has of a layer.
func (p *Repository) layerIn(ctx context.Context, d, manifest digest.Digest) (desc ocispec.Descriptor, err error) {
	image, err := p.imageManifest(ctx, manifest)
	if err != nil {
		return desc, err
	}
	for _, l := range image.Layers {
		if l.Digest == d {
			return l, nil
		}
	}
	return desc, fmt.Errorf("%s@%s: layer %s: %w", p, manifest, d, chunk.ErrNotFound)
}

// digested reports whether tables of a format have the digests of files' contents.
func digested(f toc.Format) bool {
	switch f {
	case toc.EStargz, toc.ZstdChunked, toc.TarGzip, toc.TarZstd:
		return true
	}
	return false
}

// contents returns what is kept of files' contents, as the caller may read it, here and
// by others.
func (p *Repository) contents(ctx context.Context, of LayerRef) *contents {
	if p.registry.cfg.Contents == nil {
		return nil
	}
	origin := lazy.Origin{Repository: p.Repository, Layer: of.Layer}
	kept := p.registry.cfg.Contents.For(ctx, origin, func(o lazy.Origin) bool {
		other := &Repository{Repository: o.Repository, registry: p.registry, caller: p.caller, lent: p.lent}
		_, err := other.Stat(ctx, o.Layer)
		return err == nil
	})
	if kept == nil {
		return nil
	}
	c := &contents{Readable: kept, ctx: ctx, of: of, origin: origin, turns: &p.registry.turns, inflating: &p.registry.inflating}
	if peers := p.peers(); peers != nil && !peers.Alone() && !p.maker {
		c.peers, c.in = peers, p.in(p.identities()[0])
		c.came = func(n int64) { p.registry.cfg.Came(p.image(ctx, of.Layer), "peer", n) }
	}
	return c
}

// contents are contents that are kept, and others that one member reads from layers for
// all.
type contents struct {
	lazy.Readable
	ctx       context.Context // of the reader
	of        LayerRef
	origin    lazy.Origin
	turns     *turns
	inflating *inflating
	peers     Peers // nil without others that are to be asked
	in        In
	came      func(n int64) // is told of bytes that other members have sent
}

// shared reports whether other members are asked for what is not kept here.
func (c *contents) shared() bool { return c.peers != nil }

// ReadAt implements [toc.Contents].
func (c *contents) ReadAt(d toc.Digest, size int64, p []byte, off int64) (int, error) {
	n, err := c.Readable.ReadAt(d, size, p, off)
	if err == nil {
		travelled(c.ctx, "disk", n)
	}
	return n, err
}

// Fetch implements [toc.Fetcher].
func (c *contents) Fetch(e *toc.Entry, x toc.Extent) ([]byte, error) {
	if !c.shared() {
		return nil, chunk.ErrNotFound
	}
	done, err := c.turns.begin(c.ctx, min(x.End-x.Start, x.Size)) // what it takes as it is stored, about
	if err != nil {
		return nil, err
	}
	defer done()
	b, err := c.peers.Content(c.ctx, c.in, c.of, e.Name, x)
	if err == nil {
		travelled(c.ctx, "peer", len(b))
		c.came(int64(len(b)))
		c.turns.arrived(len(b))
	}
	return b, err
}

// layerBytes are a layer's bytes as the repository's caller reads them.
type layerBytes struct {
	repository *Repository
	blob       *Blob
}

// Size implements [lazy.Source].
func (l layerBytes) Size() int64 { return l.blob.Size() }

// ReaderAt implements [lazy.Source].
func (l layerBytes) ReaderAt(ctx context.Context) io.ReaderAt { return l.readerAt(ctx) }

func (l layerBytes) readerAt(ctx context.Context) *pieces {
	return &pieces{repository: l.repository, blob: l.blob, ctx: ctx}
}

// Stream implements [lazy.Source].
func (l layerBytes) Stream(ctx context.Context) io.ReadCloser { return l.blob.Open(ctx) }
