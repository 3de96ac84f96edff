package proxy

import (
	"context"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/graph"
)

// What an image is brought in for, before anybody reads it, may also come from nodes that know nothing
// of registries and give chunks to everybody, by their digests. A blob of one chunk names it itself; of
// others a member that has all of the blob gives the map. What comes this way is kept as a chunk is
// that was found by a map (see alike.go): it is not lent before the blob has matched, and if it does
// not, all is fetched from the upstream. What does not come, is fetched as ever. Of what is not for
// everybody they are not even told the digests; and that something is, is the registry's own word. So
// nothing is asked for of a repository for which a parent answers, whatever map that might have.

// Swarm are such nodes.
type Swarm interface {
	// Fetch yields those of the chunks that are to be had, as they come, each with the SHA-256 digest d.
	// It takes a bounded time. An error is ctx's, or yield's.
	Fetch(ctx context.Context, want []digest.Digest, yield func(d digest.Digest, p []byte) error) error
}

const (
	// mostWanted bounds the chunks that are wanted of an image.
	mostWanted = 1 << 16
	// askedOfMap is how many digests members are asked for at a time, and mapWithin for how long.
	askedOfMap = 32
	mapWithin  = 15 * time.Second
)

// wants are chunks of an image by their digest, and where each belongs.
type wants struct {
	p *Repository

	mu     sync.Mutex
	order  []digest.Digest
	places map[digest.Digest][]wanted
}

// wanted is the place of a chunk in a blob.
type wanted struct {
	ref   chunk.Ref
	giver string // of the map that says what is there; "" if the blob does
	near  ours
}

// fromSwarm gets what it can of blobs that are not here. What goes wrong is found out by who reads them.
func (w *Warming) fromSwarm(ctx context.Context, p *Repository, found []*graph.Node) {
	r, questions := p.registry, 1
	if r.cfg.Swarm == nil || !r.Open(p.Repository, access.Caller{}).isPublic(ctx, w.Status().Digest, &questions) {
		return
	}
	all := &wants{p: p, places: make(map[digest.Digest][]wanted)}
	var g errgroup.Group
	g.SetLimit(warmAtOnce)
	for _, n := range found {
		b, err := p.Blob(ctx, n.Digest)
		if err != nil {
			continue
		}
		defer b.Release() // until all is put
		if b.kept == nil && !r.Stored(n.Digest, b.Size()) && r.mayShare(p.Host, n.Digest) {
			g.Go(func() error { all.blob(ctx, b); return nil })
		}
	}
	_ = g.Wait()
	_ = r.cfg.Swarm.Fetch(ctx, all.order, func(d digest.Digest, c []byte) error {
		for _, at := range all.places[d] {
			p.keepFound(ctx, at, d, c)
		}
		return nil
	})
}

// blob adds what is missing of a blob, as far as this node is to get it for its cluster.
func (w *wants) blob(ctx context.Context, b *Blob) {
	m, err := chunk.Grid(b.Digest(), b.Size())
	if err != nil {
		return
	}
	owns := w.p.registry.cfg.Owns
	missing := func(ref chunk.Ref) bool { return !b.near.Has(ref) && (owns == nil || owns(ref)) }
	if m.Len() == 1 {
		if ref := m.At(0); b.Digest().Algorithm() == digest.SHA256 && missing(ref) {
			w.add(b.Digest(), wanted{ref, "", b.near})
		}
		return
	}
	peers := w.p.registry.cfg.Peers
	if peers == nil || peers.Alone() {
		return
	}
	for first := 0; first < m.Len(); first += askedOfMap {
		var refs []chunk.Ref
		for i := first; i < min(first+askedOfMap, m.Len()); i++ {
			if ref := m.At(i); missing(ref) {
				refs = append(refs, ref)
			}
		}
		if len(refs) == 0 {
			continue
		}
		asked, cancel := context.WithTimeout(ctx, mapWithin)
		digests, giver, err := peers.Digests(asked, w.p.Host, m, first, min(askedOfMap, m.Len()-first))
		cancel()
		if err != nil {
			return // nobody has it all
		}
		for _, ref := range refs {
			if !w.add(digests.At(ref.Index()-first), wanted{ref, giver, b.near}) {
				return
			}
		}
	}
}

// add reports whether there is room for more.
func (w *wants) add(d digest.Digest, at wanted) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.order) >= mostWanted {
		return false
	}
	if w.places[d] == nil {
		w.order = append(w.order, d)
	}
	w.places[d] = append(w.places[d], at)
	return true
}

// keepFound puts a chunk where it belongs, if it fits there and who says so is believed.
func (p *Repository) keepFound(ctx context.Context, at wanted, d digest.Digest, c []byte) {
	r, named := p.registry, at.ref
	if named.Digest = d; named.Check("swarm", c) != nil {
		return // a map that is wrong of the size
	}
	if at.giver != "" && (!r.cfg.Store.Fits(at.ref, c) || !r.cfg.Peers.Mapped(p.Host, named, at.giver)) {
		return
	}
	r.report(at.near.Put(ctx, named, c))
}
