package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/delta"
)

const (
	// digestAtOnce is for how many questions of other members chunks are hashed at a time.
	digestAtOnce = 2
	// mostLooked and mostAlike bound the blobs of which is asked whether they are of a
	// repository, and those that are compared with one of it.
	mostLooked = 1024
	mostAlike  = 16
)

// alike returns far with the chunks of large blobs taken from others of the repository that
// are stored, where members know that they are the same: see package delta.
func (p *Repository) alike(far chunk.Source) chunk.Source { return &alike{p, far} }

type alike struct {
	*Repository
	far chunk.Source
}

// Get implements [chunk.Source].
func (s *alike) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, s, ref)
}

// GetRun implements [chunk.Runner].
func (s *alike) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if len(refs) == 0 || refs[0].Total < delta.Least || s.registry.cfg.Peers.Alone() {
		return chunk.GetRun(ctx, s.far, refs, yield)
	}
	m, err := chunk.Grid(refs[0].Blob, refs[0].Total)
	if err != nil {
		return err
	}
	// What is remembered of the blob has nothing of this caller: members are not told who asks,
	// and what is stored is looked into as the repository's.
	all := &Repository{Repository: s.Repository.Repository, registry: s.registry}
	return s.registry.deltas.Of(s.String(), m, mapsOf{all}, storedOf{all}).GetRun(ctx, refs, s.far, yield)
}

// mapsOf are the maps of a registry's blobs that other members have.
type mapsOf struct{ *Repository }

// Digests implements [delta.Members].
func (o mapsOf) Digests(ctx context.Context, m *chunk.Map, first, n int) (chunk.Digests, string, error) {
	return o.registry.cfg.Peers.Digests(ctx, o.Host, m, first, n)
}

// Mapped implements [delta.Members].
func (o mapsOf) Mapped(ref chunk.Ref, giver string) bool {
	return o.registry.cfg.Peers.Mapped(o.Host, ref, giver)
}

// storedOf are the stored blobs of a repository, and chunks that are its host's.
type storedOf struct{ *Repository }

// Alike implements [delta.Stored]: of the blobs that the upstream has shown to be of the
// repository, and that are neither less than half nor more than twice as large, those that were
// read last, and then those that are kept beside the store.
func (o storedOf) Alike(ctx context.Context, m *chunk.Map) (all []*chunk.Map) {
	r, least, most := o.registry, m.Size()/2, 2*m.Size()
	for i, w := range r.cfg.Store.Wholes(least, most) {
		if i == mostLooked || len(all) == mostAlike {
			break
		}
		if member, known := r.cfg.Catalog.Member(o.String(), w.Digest); known && o.comparable(m, w.Digest, member) && r.mayShare(o.Host, w.Digest) {
			all = add(all, w.Digest, w.Size)
		}
	}
	if r.cfg.Beside == (nobody{}) {
		return all
	}
	for d, member := range r.cfg.Catalog.Members(o.String(), mostLooked) {
		if len(all) == mostAlike || ctx.Err() != nil {
			break
		}
		if member.Size < least || member.Size > most || !o.comparable(m, d, member) {
			continue
		}
		if size, err := r.StatBeside(ctx, o.Host, d); err == nil && size == member.Size {
			all = add(all, d, size)
		}
	}
	return all
}

// comparable reports whether a member of the repository may be compared with a blob.
func (o storedOf) comparable(m *chunk.Map, d digest.Digest, member catalog.Member) bool {
	return d != m.Blob() && (member.Confirmed || member.Imported)
}

// add adds a blob to all if it is not there.
func add(all []*chunk.Map, d digest.Digest, size int64) []*chunk.Map {
	m, err := chunk.Grid(d, size)
	if err != nil || slices.ContainsFunc(all, func(other *chunk.Map) bool { return other.Blob() == d }) {
		return all
	}
	return append(all, m)
}

// Match implements [delta.Stored]. What is kept beside the store need not have been checked: a
// chunk that has the digest is right whatever it is in.
func (o storedOf) Match(ctx context.Context, ref chunk.Ref, want digest.Digest) ([]byte, error) {
	p, err := o.near(ref.Blob).Match(ctx, ref, want)
	r := o.registry
	if err == nil || r.cfg.Beside == (nobody{}) || !r.cfg.Catalog.Possesses(o.Host, ref.Blob) {
		return p, err
	}
	if p, err = r.cfg.Beside.Read(ctx, ref); err == nil && digest.FromBytes(p) != want {
		err = chunk.ErrNotFound
	}
	return p, err
}

// Fits implements [delta.Stored].
func (o storedOf) Fits(ref chunk.Ref, p []byte) bool { return o.registry.cfg.Store.Fits(ref, p) }

// Find implements [delta.Stored].
func (o storedOf) Find(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return o.findStored(ctx, ref)
}

// Digests returns digests of chunks of a blob, all of which is stored or kept beside the store,
// for another member, as [Registry.Lend] lends chunks.
func (r *Registry) Digests(ctx context.Context, host string, d digest.Digest, total int64, first, n int) (chunk.Digests, error) {
	if r.mayShare(host, d) {
		all, err := r.inTurn(ctx, func() (chunk.Digests, error) { return r.cfg.Store.Digests(ctx, d, total, first, n) })
		if !errors.Is(err, chunk.ErrNotFound) {
			return all, err
		}
	}
	kept, err := r.lentKept(ctx, host, d, total)
	if err != nil {
		return nil, err
	}
	return r.inTurn(ctx, func() (chunk.Digests, error) { return digestsOf(ctx, kept, d, total, first, n) })
}

// inTurn bounds how much is hashed for other members at a time.
func (r *Registry) inTurn(ctx context.Context, hash func() (chunk.Digests, error)) (chunk.Digests, error) {
	if err := r.digesting.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.digesting.Release(1)
	return hash()
}

// digestsOf hashes n chunks of a blob, from chunk first on.
func digestsOf(ctx context.Context, src chunk.Source, d digest.Digest, total int64, first, n int) (all chunk.Digests, err error) {
	m, err := chunk.Grid(d, total)
	if err != nil {
		return nil, err
	}
	if first < 0 || n < 1 || first > m.Len()-n {
		return nil, fmt.Errorf("blob %s: digests of %d chunks from %d of %d", d, n, first, m.Len())
	}
	for i := range n {
		p, err := src.Get(ctx, m.At(first+i))
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(p)
		all = append(all, sum[:]...)
	}
	return all, nil
}
