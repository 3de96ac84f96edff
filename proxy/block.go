package proxy

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/ref"
)

// A chunk that is asked for by its own digest alone, as those do who speak IPFS's protocols, comes
// without a name of what it belongs to. It is given out only as a part of a blob of which a registry
// has said that it is in a repository, and to whom that registry serves the repository. What is not
// for the asker is not told from what is not here.

// publicQuestions bounds how often upstreams are asked, for one chunk, whether a repository is for
// everybody.
const publicQuestions = 4

// Block returns a chunk of the SHA-256 digest d that an upstream serves to everybody, from what is
// on this machine. Nothing is fetched for it. The error is [chunk.ErrNotFound], or that of ctx.
func (r *Registry) Block(ctx context.Context, d digest.Digest) ([]byte, error) {
	for p, ref := range r.public(ctx, d) {
		if b, err := p.block(ctx, ref, d); err == nil {
			return b, nil
		}
	}
	return nil, noBlock(ctx, d)
}

// BlockSize returns the size in bytes of what [Registry.Block] returns, without reading it.
func (r *Registry) BlockSize(ctx context.Context, d digest.Digest) (int64, error) {
	for p, ref := range r.public(ctx, d) {
		if p.hasBlock(ctx, ref) {
			return ref.Size, nil
		}
	}
	return 0, noBlock(ctx, d)
}

// BlockFor is Block of what caller may read in a repository.
func (r *Registry) BlockFor(ctx context.Context, repo ref.Repository, caller access.Caller, d digest.Digest) ([]byte, error) {
	p := r.Open(repo, caller)
	for _, ref := range r.placesOf(d) {
		if !p.mayRead(ctx, ref.Blob) {
			continue
		}
		if b, err := p.block(ctx, ref, d); err == nil {
			return b, nil
		}
	}
	return nil, noBlock(ctx, d)
}

func noBlock(ctx context.Context, d digest.Digest) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("chunk %s: %w", d, err)
	}
	return fmt.Errorf("chunk %s: %w", d, chunk.ErrNotFound)
}

// placesOf returns where a chunk of the digest d may stand: in a blob that is nothing else, and where
// one is known.
func (r *Registry) placesOf(d digest.Digest) (all []chunk.Ref) {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return nil
	}
	add := func(ref chunk.Ref) {
		if ref.Digest = ""; !slices.Contains(all, ref) {
			all = append(all, ref)
		}
	}
	for _, home := range r.cfg.Catalog.Homes(d) {
		m, known := r.cfg.Catalog.Member(home, d)
		if g, err := chunk.Grid(d, m.Size); known && err == nil && g.Len() == 1 {
			add(g.At(0))
		}
	}
	if ref, ok := r.cfg.Store.Place(d); ok {
		add(ref)
	}
	if ref, ok := r.told.place(d); ok {
		add(ref)
	}
	return all
}

// public yields where a chunk of the digest d may stand, and repositories that everybody may read and
// that have it. Those come first of which that is known.
func (r *Registry) public(ctx context.Context, d digest.Digest) iter.Seq2[*Repository, chunk.Ref] {
	return func(yield func(*Repository, chunk.Ref) bool) {
		places := r.placesOf(d)
		for _, questions := range []int{0, publicQuestions} {
			for _, at := range places {
				for _, home := range r.cfg.Catalog.Homes(at.Blob) {
					host, name, _ := strings.Cut(home, "/")
					p := r.Open(ref.Repository{Host: host, Name: name}, access.Caller{})
					if p.isPublic(ctx, at.Blob, &questions) && !yield(p, at) {
						return
					}
				}
			}
		}
	}
}

// isPublic reports whether the upstream serves d, which it has in the repository, to everybody. It is
// asked, while there are questions, when its last word is too old; what it has refused, not again
// until that is as old.
func (p *Repository) isPublic(ctx context.Context, d digest.Digest, questions *int) bool {
	ledger := p.registry.ledger
	switch {
	case ledger.Shared(p.Host):
		return false // what the node's own credentials open is for its users, not for everybody
	case !p.registry.toAll(p.String()):
		return false
	case ledger.Public(p.Host, p.String()):
		return p.serves()
	case *questions == 0 || ctx.Err() != nil || ledger.Refused(p.Host, p.String()):
		return false
	}
	*questions--
	// What was imported is open to the node's users while its registry cannot be asked.
	return p.mayRead(ctx, d) && (!p.imported(d) || ledger.Holds(p.Host, p.String(), access.Caller{}))
}

// Public reports whether everybody may read a blob in some repository, by what registries have said
// last, which none is asked about again.
func (r *Registry) Public(d digest.Digest) bool {
	for _, home := range r.cfg.Catalog.Homes(d) {
		host, _, _ := strings.Cut(home, "/")
		m, known := r.cfg.Catalog.Member(home, d)
		if known && m.Confirmed && r.toAll(home) && !r.ledger.Shared(host) && r.mayShare(host, d) && r.ledger.Holds(host, home, access.Caller{}) {
			return true
		}
	}
	return false
}

// toAll reports whether it is a registry's own word that everybody may read a repository, if they may. A
// parent serves to everybody also what its own credentials open, and what was imported there: that is for
// this node's users as for the parent's, and not for the world.
func (r *Registry) toAll(repository string) bool { return !r.cfg.Deputies || r.open.has(repository) }

// maxOpen is of how many repositories that is remembered.
const maxOpen = 4096

// openNow are repositories. The zero value is empty.
type openNow struct {
	mu  sync.Mutex
	all map[string]bool
}

func (o *openNow) add(repository string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil || len(o.all) >= maxOpen {
		o.all = make(map[string]bool)
	}
	o.all[repository] = true
}

func (o *openNow) has(repository string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all[repository]
}

// serves reports whether the settings let the node serve the registry.
func (p *Repository) serves() bool {
	_, err := p.registry.cfg.Upstream(p.Repository, "")
	return err == nil
}

// mayRead reports whether the caller may read d, of which something says that it is in the
// repository.
func (p *Repository) mayRead(ctx context.Context, d digest.Digest) bool {
	m, known := p.registry.cfg.Catalog.Member(p.String(), d)
	if !known || !p.serves() {
		return false
	}
	if m.Manifest {
		return p.authorize(ctx, d, "manifest", resolves(d)) == nil
	}
	_, err := p.Stat(ctx, d)
	return err == nil
}

// block returns a chunk of a blob, as far as the blob is the host's, if its digest is d.
func (p *Repository) block(ctx context.Context, ref chunk.Ref, d digest.Digest) ([]byte, error) {
	defer p.registry.cfg.Store.Retain(ref.Blob, ref.Total)() // which makes it one that was read lately
	b, err := p.near(ref.Blob).Get(ctx, ref)
	if errors.Is(err, chunk.ErrNotFound) {
		b, err = p.keptFor(ctx, ref)
	}
	if chunk.IsCorrupt(err) {
		p.registry.report(err)
	}
	if err == nil && digest.FromBytes(b) != d {
		err = chunk.ErrNotFound
	}
	return b, err
}

// hasBlock reports whether a chunk of a blob is here, without reading it.
func (p *Repository) hasBlock(ctx context.Context, ref chunk.Ref) bool {
	if p.near(ref.Blob).Has(ref) {
		return true
	}
	size, err := p.registry.StatBeside(ctx, p.Host, ref.Blob)
	return err == nil && size == ref.Total
}

// mostTold bounds the chunks of which is remembered where they stand, as that was told: 16 GiB of
// blobs.
const mostTold = 1 << 14

// told remembers where chunks stand whose digests somebody was told: the store knows one place for a
// digest, and none of blobs that are kept beside it. The zero value is ready to use.
type told struct {
	mu     sync.Mutex
	places map[digest.Digest]chunk.Ref
}

func (t *told) add(ref chunk.Ref, d digest.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.places == nil {
		t.places = make(map[digest.Digest]chunk.Ref)
	}
	for other := range t.places {
		if len(t.places) < mostTold {
			break
		}
		delete(t.places, other)
	}
	t.places[d] = ref
}

func (t *told) place(d digest.Digest) (chunk.Ref, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ref, ok := t.places[d]
	return ref, ok
}
