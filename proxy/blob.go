package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/ref"
)

// Blob is a blob of a repository, open for reading.
type Blob struct {
	*chunk.Blob
	release func()
	near    ours
	kept    Kept        // nil unless it is read from beside the store
	strict  *chunk.Blob // for parts of what is not proven; nil for the same
	image   Image
}

// part returns the blob as it is read for a section, and whether that may be sent
// from its file. With [Config.Direct] a part of a blob that has not
// matched its digest rests on what this node has fetched itself.
func (b *Blob) part(complete bool) (from *chunk.Blob, lendable bool) {
	proven := b.Proven()
	if complete || proven || b.strict == nil {
		return b.Blob, proven || !complete
	}
	return b.strict, false
}

// Release is to be called when the blob has been read.
func (b *Blob) Release() { b.release() }

// lend opens the blob's file at off if n bytes from there may be sent as they
// are. Whose they are is asked then: for an answer of several ranges that is long
// after the blob was.
func (b *Blob) lend(ctx context.Context, off, n int64) (*os.File, bool) {
	if b.kept != nil {
		return b.kept.Lend(ctx, off, n)
	}
	return b.near.Lend(b.Digest(), off, n)
}

// Stat returns the size of a blob in bytes.
func (p *Repository) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	size, err := p.blobSize(ctx, d)
	if err != nil {
		err = fmt.Errorf("%s@%s: %w", p, d, err)
	}
	return size, err
}

// Blob opens a blob. What is read of it is kept.
func (p *Repository) Blob(ctx context.Context, d digest.Digest) (*Blob, error) {
	return p.open(ctx, d, p.near(d))
}

// Pull opens a blob for somebody who keeps it: whether the node keeps it too is [Config.Keeps]' to
// say.
func (p *Repository) Pull(ctx context.Context, d digest.Digest) (*Blob, error) {
	return p.open(ctx, d, p.passing(d))
}

func (p *Repository) open(ctx context.Context, d digest.Digest, near ours) (*Blob, error) {
	size, err := p.Stat(ctx, d)
	if err != nil {
		return nil, err
	}
	m, err := chunk.Grid(d, size)
	if err != nil {
		p.forget(d)
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	far, err := p.far(d)
	if err != nil {
		return nil, err
	}
	src, proofs, kept, err := p.sources(ctx, m, near, far)
	if err != nil {
		return nil, fmt.Errorf("%s@%s: %w", p, d, err)
	}
	r := p.registry
	cfg := chunk.BlobConfig{Window: r.cfg.Window, Budget: r.cfg.Budget, Proofs: proofs}
	if r.cfg.Peers != nil && !r.cfg.Peers.Alone() {
		cfg.Run, cfg.Turns = r.cfg.Peers.StripeSize(size), r.cfg.Turns // each is another member's
		if r.cfg.Ahead != nil && near.keeps == nil {                   // what only passes through is not there later
			cfg.Ahead, cfg.Kept = r.cfg.Ahead(), near.Has
		}
	}
	b := chunk.NewBlob(m, src, cfg)
	opened := &Blob{Blob: b, release: r.cfg.Store.Retain(d, size), near: near, kept: kept, image: p.image(ctx, d)}
	if r.cfg.Peers != nil && r.cfg.Direct != nil {
		direct, err := p.from(r.cfg.Direct, d)
		if err != nil {
			opened.Release()
			return nil, err
		}
		if cfg.Run > 0 {
			cfg.Run = chunk.StripeSize // all of it is this node's to fetch
		}
		opened.strict = chunk.NewBlob(m, p.strict(near, direct), cfg)
	}
	return opened, nil
}

// sources returns where the chunks of a blob come from: beside the store, where kept is not nil,
// or from what [Repository.source] returns.
func (p *Repository) sources(ctx context.Context, m *chunk.Map, near ours, far chunk.Source) (chunk.Source, chunk.Proofs, Kept, error) {
	kept := p.kept(ctx, m, far)
	owned, err := p.owns(ctx, m, far)
	if err != nil {
		return nil, nil, nil, err
	}
	src, proofs := p.source(m.Blob(), near, owned, far)
	switch {
	case kept != nil:
		src, proofs = beside(kept, src), known{}
	case m.Len() == 1 && p.registry.cfg.Beside != (nobody{}):
		src = showing{src, p}
	}
	return src, proofs, kept, nil
}

// far returns the upstream as a source of a blob.
func (p *Repository) far(d digest.Digest) (chunk.Source, error) {
	return p.from(p.registry.cfg.Upstream, d)
}

// from returns an upstream as a source of a blob, for whoever may read it.
func (p *Repository) from(upstream func(ref.Repository, string) (Upstream, error), d digest.Digest) (chunk.Source, error) {
	var all []chunk.Source
	for _, as := range p.identities() {
		up, err := upstream(p.Repository, as.Authorization())
		if err != nil {
			return nil, err
		}
		all = append(all, &heeded{timed{p.tallied(up.Blob(), fromAnybody), p}, func(err error) {
			p.heed(as, err, up, "")
			if chunk.IsCorrupt(err) || errors.Is(err, chunk.ErrNotFound) {
				p.forget(d)
			}
		}})
	}
	return chunk.First(all...), nil
}

// refuted makes the upstream look again at a blob that has not matched its digest, and forgets what was read of it here and there.
func (p *Repository) refuted(d digest.Digest) {
	up, err := p.registry.cfg.Upstream(p.Repository, "")
	if again, ok := up.(doubter); ok && err == nil {
		again.Doubt(d)
	}
	p.registry.pieces.drop(p.Host, d)
}

// settled tells the upstream of a blob that has matched its digest.
func (p *Repository) settled(d digest.Digest) {
	up, err := p.registry.cfg.Upstream(p.Repository, "")
	if s, ok := up.(settler); ok && err == nil {
		s.Settled(d)
	}
}

// forget makes the upstream be asked again about a blob that is not what it said.
func (p *Repository) forget(d digest.Digest) {
	if p.imported(d) {
		return // it is not the upstream's to take away
	}
	p.registry.report(p.registry.cfg.Catalog.ForgetMember(p.String(), d))
}

// heeded tells of what went wrong.
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
	if err != nil {
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
		err := p.authorize(ctx, d, "blob", func(ctx context.Context, up Upstream) error {
			_, err := stat(ctx, up)
			return err
		})
		if errors.Is(err, chunk.ErrNotFound) {
			p.forget(d)
		}
		return m.Size, err
	}
	size, err := ask(ctx, p, "blob size "+string(d), func(ctx context.Context, up Upstream) (int64, error) {
		size, err := stat(ctx, up)
		if err == nil {
			p.confirm(d, m, known, size)
		}
		return size, err
	}, func(size int64) Facts {
		return Facts{Members: map[digest.Digest]catalog.Member{d: {MediaType: m.MediaType, Size: size, Confirmed: true}}}
	})
	if hasNoSay(err) {
		m, known = r.cfg.Catalog.Member(p.String(), d) // others may have known more
	}
	if !known || !p.cannotAsk(d, err) {
		return size, err
	}
	if err := p.unasked(d, err); err != nil {
		return 0, err
	}
	if m.Confirmed {
		return m.Size, nil
	}
	return m.Size, p.readsElsewhere(d, err)
}

// confirm records the size of a blob that the upstream has, as a manifest says or not:
// m, if known. If they differ one of two is wrong, and nothing to be remembered.
func (p *Repository) confirm(d digest.Digest, m catalog.Member, known bool, size int64) {
	if !known || size == m.Size {
		p.registry.report(p.registry.cfg.Catalog.AddMembers(p.String(), map[digest.Digest]catalog.Member{d: {MediaType: m.MediaType, Size: size, Confirmed: true}}))
	}
}

// readsElsewhere returns nil if the caller may read d in another repository, and
// so knows it already. The upstream failed with err: a manifest of this
// repository may name anything, and other hosts may claim anything.
func (p *Repository) readsElsewhere(d digest.Digest, err error) error {
	r := p.registry
	for _, home := range r.cfg.Catalog.Homes(d) {
		if r.mayShare(hostOf(home), d) && r.ledger.Holds(hostOf(home), home, p.caller) {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", access.ErrUnchecked, err)
}

func hostOf(repository string) string {
	host, _, _ := strings.Cut(repository, "/")
	return host
}
