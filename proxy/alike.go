package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
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
// read last.
func (o storedOf) Alike(m *chunk.Map) (all []*chunk.Map) {
	r := o.registry
	looked := 0
	for _, w := range r.cfg.Store.Wholes(m.Size()/2, 2*m.Size()) {
		if looked == mostLooked || len(all) == mostAlike {
			break
		}
		looked++
		member, known := r.cfg.Catalog.Member(o.String(), w.Digest)
		if w.Digest == m.Blob() || !known || !member.Confirmed && !member.Imported || !r.mayShare(o.Host, w.Digest) {
			continue
		}
		if other, err := chunk.Grid(w.Digest, w.Size); err == nil {
			all = append(all, other)
		}
	}
	return all
}

// Match implements [delta.Stored].
func (o storedOf) Match(ctx context.Context, ref chunk.Ref, want digest.Digest) ([]byte, error) {
	return o.near(ref.Blob).Match(ctx, ref, want)
}

// Find implements [delta.Stored].
func (o storedOf) Find(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return o.findStored(ctx, ref)
}

// Digests returns digests of chunks of a blob, all of which is stored, for another member, as
// [Registry.Lend] lends chunks.
func (r *Registry) Digests(ctx context.Context, host string, d digest.Digest, total int64, first, n int) (chunk.Digests, error) {
	if err := r.digesting.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.digesting.Release(1)
	err := chunk.ErrNotFound
	if r.mayShare(host, d) {
		var all chunk.Digests
		if all, err = r.cfg.Store.Digests(ctx, d, total, first, n); err == nil {
			return all, nil
		}
	}
	if !errors.Is(err, chunk.ErrNotFound) {
		return nil, err
	}
	kept, err := r.lentKept(ctx, host, d, total)
	if err != nil {
		return nil, err
	}
	return digestsOf(ctx, kept, d, total, first, n)
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
