package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Blob is a blob of a repository, open for reading.
type Blob struct {
	*chunk.Blob
	release  func()
	lendable bool // the bytes that are stored are this repository's too
}

// Release is to be called when the blob has been read.
func (b *Blob) Release() { b.release() }

// Blob opens a blob.
//
// The store knows blobs by digest alone, and a registry may say of any digest
// that it has it. So a host whose word is all there is reads of what came from
// another host only after it has shown a piece of it; until then it gets nothing
// but its own bytes.
func (p *Repository) Blob(ctx context.Context, d digest.Digest) (*Blob, error) {
	size, err := p.blobSize(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("%s@%s: %w", p, d, err)
	}
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	r := p.registry
	far, err := p.far()
	if err != nil {
		return nil, err
	}
	cfg := chunk.BlobConfig{Window: r.cfg.Window, Budget: r.cfg.Budget}
	possessed, err := p.possesses(ctx, m, far)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s@%s: %w", p, d, err)
	case !possessed:
		return &Blob{chunk.NewBlob(m, far, cfg), func() {}, false}, nil
	}
	cfg.Proofs = r.cfg.Store
	src := chunk.Cache(r.cfg.Store, far, &r.flight, r.cfg.Report)
	return &Blob{chunk.NewBlob(m, src, cfg), r.cfg.Store.Retain(d, size), true}, nil
}

// far returns the upstream as a source, checked as far as its chunks can be.
func (p *Repository) far() (chunk.Source, error) {
	var all []chunk.Source
	for _, as := range p.identities() {
		up, err := p.registry.cfg.Upstream(p.Repository, as.Authorization())
		if err != nil {
			return nil, err
		}
		all = append(all, &heeded{up.Blob(), func(err error) { p.heed(as, err) }})
	}
	return chunk.Named("upstream", chunk.Verify("upstream", chunk.First(all...))), nil
}

// heeded tells of refusals.
type heeded struct {
	src  chunk.Source
	heed func(error)
}

func (h *heeded) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := h.src.Get(ctx, ref)
	return p, h.told(err)
}

func (h *heeded) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return h.told(chunk.GetRun(ctx, h.src, refs, yield))
}

func (h *heeded) told(err error) error {
	if errors.Is(err, chunk.ErrDenied) {
		h.heed(err)
	}
	return err
}

// blobSize decides whether d may be read under the repository, and returns its
// size.
func (p *Repository) blobSize(ctx context.Context, d digest.Digest) (int64, error) {
	r := p.registry
	m, known := r.cfg.Catalog.Member(p.String(), d)
	stat := func(ctx context.Context, up Upstream) (int64, error) { return up.Stat(ctx, d) }
	if known && m.Confirmed {
		return m.Size, p.authorize(ctx, "blob "+string(d), func(ctx context.Context, up Upstream) error {
			_, err := stat(ctx, up)
			return err
		})
	}
	size, err := ask(ctx, p, "blob size "+string(d), func(ctx context.Context, up Upstream) (int64, error) {
		size, err := stat(ctx, up)
		if err == nil {
			r.report(r.cfg.Catalog.AddMembers(p.String(), map[digest.Digest]catalog.Member{d: {MediaType: m.MediaType, Size: size, Confirmed: true}}))
		}
		return size, err
	})
	if err == nil || !known || !upstream.Unreachable(err) {
		return size, err
	}
	if err := p.unasked(err); err != nil {
		return 0, err
	}
	return m.Size, p.readsElsewhere(d, err)
}

// readsElsewhere returns nil if the caller may read d in another repository, and
// so knows it already. The upstream failed with err: a manifest of this
// repository may name anything.
func (p *Repository) readsElsewhere(d digest.Digest, err error) error {
	for _, home := range p.registry.cfg.Catalog.Homes(d) {
		if p.registry.ledger.Holds(hostOf(home), home, p.caller) {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", access.ErrUnchecked, err)
}

func hostOf(repository string) string {
	host, _, _ := strings.Cut(repository, "/")
	return host
}

// possesses reports whether the repository's host has shown to have the blob, as
// far as other hosts are known to. It shows that by a chunk, taken at random,
// that is the same as the stored one.
func (p *Repository) possesses(ctx context.Context, m *chunk.Map, far chunk.Source) (bool, error) {
	c := p.registry.cfg.Catalog
	homes := c.Homes(m.Blob())
	others := false
	for _, home := range homes {
		others = others || hostOf(home) != p.Host
	}
	if !others || c.Possesses(p.Host, m.Blob()) {
		return true, nil
	}
	stored, ref := p.registry.anyStored(ctx, m)
	if stored == nil {
		return false, nil
	}
	shown, err := far.Get(ctx, ref)
	switch {
	case upstream.Unreachable(err):
		return true, p.readsElsewhere(m.Blob(), err)
	case err != nil && !chunk.IsCorrupt(err):
		return false, err
	case err != nil || !bytes.Equal(shown, stored):
		return false, nil
	}
	p.registry.report(c.SetPossesses(p.Host, m.Blob()))
	return true, nil
}

// anyStored returns a chunk of a blob that is stored, from a random place on.
func (r *Registry) anyStored(ctx context.Context, m *chunk.Map) ([]byte, chunk.Ref) {
	start := rand.N(m.Len())
	for i := range m.Len() {
		ref := m.At((start + i) % m.Len())
		if p, err := r.cfg.Store.Get(ctx, ref); err == nil {
			return p, ref
		}
	}
	return nil, chunk.Ref{}
}
