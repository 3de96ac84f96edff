package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
	lendable bool // what is stored of it may be sent
}

// Release is to be called when the blob has been read.
func (b *Blob) Release() { b.release() }

// Blob opens a blob.
func (p *Repository) Blob(ctx context.Context, d digest.Digest) (*Blob, error) {
	size, err := p.blobSize(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("%s@%s: %w", p, d, err)
	}
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	far, err := p.far()
	if err != nil {
		return nil, err
	}
	has, err := p.possession(ctx, m, far)
	if err != nil {
		return nil, fmt.Errorf("%s@%s: %w", p, d, err)
	}
	src, proofs := p.source(d, has, far)
	r := p.registry
	b := chunk.NewBlob(m, src, chunk.BlobConfig{Window: r.cfg.Window, Budget: r.cfg.Budget, Proofs: proofs})
	return &Blob{b, r.cfg.Store.Retain(d, size), has == shown}, nil
}

// possession is what a registry has shown of a blob that it says it has. The
// store knows blobs by digest alone, and anyone can run a registry that says of
// any digest that it has it: who reads from there must not be given what another
// registry keeps to itself.
type possession int

const (
	shown   possession = iota // it has the blob, or nobody else is known to
	claimed                   // there is nothing to compare with yet
	refuted                   // it has other bytes
)

// possession lets a registry show that it has a blob that others have too: by a
// chunk, taken at random, that is the same as the stored one.
func (p *Repository) possession(ctx context.Context, m *chunk.Map, far chunk.Source) (possession, error) {
	c, d := p.registry.cfg.Catalog, m.Blob()
	alone := !slices.ContainsFunc(c.Homes(d), func(home string) bool { return hostOf(home) != p.Host })
	if alone || c.Possesses(p.Host, d) {
		return shown, nil
	}
	ref := m.At(rand.N(m.Len()))
	stored, err := p.registry.cfg.Store.Get(ctx, ref)
	if err != nil || !p.registry.cfg.Store.Proven(d) {
		return claimed, nil
	}
	given, err := far.Get(ctx, ref)
	switch {
	case upstream.Unreachable(err):
		return shown, p.readsElsewhere(d, err)
	case chunk.IsCorrupt(err) || err == nil && !bytes.Equal(given, stored):
		return refuted, nil
	case err != nil:
		return refuted, err
	}
	p.possesses(d)
	return shown, nil
}

func (p *Repository) possesses(d digest.Digest) {
	p.registry.report(p.registry.cfg.Catalog.SetPossesses(p.Host, d))
}

// source returns where the chunks of a blob come from, and what proves them. A
// registry that has only claimed it gets its own bytes and no others; they are
// kept, and when they have turned out to be the blob, it has shown that.
func (p *Repository) source(d digest.Digest, has possession, far chunk.Source) (chunk.Source, chunk.Proofs) {
	r := p.registry
	switch has {
	case shown:
		return chunk.Cache(r.cfg.Store, far, &r.flight, r.cfg.Report), r.cfg.Store
	case claimed:
		return chunk.Cache(putOnly{r.cfg.Store}, far, r.flightOf(p.Host), r.cfg.Report),
			ownProofs{r.cfg.Store, func() { p.possesses(d) }}
	}
	return far, nil
}

// putOnly is a store that is not read.
type putOnly struct{ Store }

func (putOnly) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, chunk.ErrNotFound }

// ownProofs are a store's, of a reader that has none of the store's bytes.
type ownProofs struct {
	Store
	proven func()
}

func (ownProofs) Proven(digest.Digest) bool { return false }

func (o ownProofs) Prove(d digest.Digest, total int64) {
	o.Store.Prove(d, total)
	o.proven()
}

// flightOf returns the flight of those who read what a host has only claimed.
func (r *Registry) flightOf(host string) *chunk.Flight {
	r.claimsMu.Lock()
	defer r.claimsMu.Unlock()
	f := r.claims[host]
	if f == nil {
		const maxHosts = 256
		if r.claims == nil || len(r.claims) >= maxHosts {
			r.claims = make(map[string]*chunk.Flight) // flights that are forgotten end alone
		}
		f = new(chunk.Flight)
		r.claims[host] = f
	}
	return f
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
