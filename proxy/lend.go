package proxy

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
)

// MayLend reports whether what is stored of a blob is a host's too.
func (r *Registry) MayLend(host string, d digest.Digest) bool { return r.mayShare(host, d) }

// Lend yields chunks of a blob that are stored, for another member. They must be
// host's, as far as that is known here. [chunk.ErrNotFound] says that one of them
// is not.
func (r *Registry) Lend(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, r.lent(host), refs, yield)
}

// Relay is Lend, but waits for chunks that are on their way here from other members.
func (r *Registry) Relay(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, chunk.Coming(r.lent(host), r.flights.of(flightKey{host, fromOwners})), refs, yield)
}

func (r *Registry) lent(host string) chunk.Source {
	return lent{&Repository{Repository: ref.Repository{Host: host}, registry: r}}
}

// lent is what is stored of a host, chunk by chunk.
type lent struct{ from *Repository }

func (l lent) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := l.from.storedFor(ctx, ref)
	if errors.Is(err, chunk.ErrNotFound) {
		p, err = l.from.keptFor(ctx, ref)
	}
	return p, err
}

// keptFor returns a chunk of a blob that is kept beside the store.
func (p *Repository) keptFor(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	kept, err := p.registry.lentKept(ctx, p.Host, ref.Blob, ref.Total)
	if err != nil {
		return nil, err
	}
	return kept.Get(ctx, ref)
}

// storedFor returns a stored chunk, or one of another blob that has the digest by which it
// is asked for. Nothing is stored for that: the digest is the asker's word alone.
func (p *Repository) storedFor(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	want := ref.Digest
	ref.Digest = ""
	b, err := p.near(ref.Blob).Get(ctx, ref)
	if want == "" || err == nil && digest.FromBytes(b) == want {
		return b, err
	}
	ref.Digest = want
	return p.findStored(ctx, ref)
}

// findStored returns a chunk of any blob that has the digest and the size of ref, and is the
// host's.
func (p *Repository) findStored(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	b, other, err := p.registry.cfg.Store.Find(ctx, ref.Digest)
	if err == nil && (other.Size != ref.Size || !p.registry.mayShare(p.Host, other.Blob)) {
		err = chunk.ErrNotFound
	}
	return b, err
}

// Fetch yields chunks of a blob for another member, which has seen that its client
// may read it: what is stored, what others hold, else what the upstream sends.
func (p *Repository) Fetch(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if len(refs) == 0 {
		return nil
	}
	d, total := refs[0].Blob, refs[0].Total
	m, err := chunk.Grid(d, total)
	if err != nil {
		return err
	}
	far, err := p.far(d)
	if err != nil {
		return err
	}
	src, _, _, err := p.sources(ctx, m, p.passing(d), far)
	if err != nil {
		return err
	}
	defer p.registry.cfg.Store.Retain(d, total)()
	for i := range refs {
		refs[i].Digest = "" // which is the asker's word, see storedFor
	}
	return chunk.GetRun(ctx, src, refs, yield)
}

// lendable is the store as far as what it holds may be lent. The rest, as after a
// crash, is fetched once more, by this node for all who ask.
type lendable struct {
	ours
	peers Peers
	host  string
}

func (s lendable) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if !s.peers.Vouched(s.host, ref) {
		return nil, chunk.ErrNotFound
	}
	return s.ours.Get(ctx, ref)
}

// borrowed reads all of a manifest that other members have, while the upstream
// cannot be asked.
func (p *Repository) borrowed(ctx context.Context, d digest.Digest, size int64) ([]byte, error) {
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, err
	}
	var raw []byte
	var refs []chunk.Ref
	for i := range m.Len() {
		refs = append(refs, m.At(i))
	}
	err = chunk.GetRun(ctx, chunk.Verify("peer", p.peers().Held(p.Host)), refs, func(_ chunk.Ref, c []byte) error {
		raw = append(raw, c...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, chunk.ErrNotFound
	}
	return raw, nil
}
