package proxy

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// The store knows blobs by digest alone, and registries do not vouch for each
// other: anyone can run one that says of any digest that it has it, and sends
// what it likes. So a host is served from the store, and may add to it, only
//
//   - while it is the blob's supplier: the one host that what is stored came from;
//   - or once the blob has matched its digest, when the host has shown that it has
//     the blob too: by sending all of it, or a chunk, taken at random, that is the
//     same as the stored one.
//
// Any other host's readers get its own bytes, which are not kept. When they turn
// out to be the blob, the host becomes its supplier, and what an earlier one has
// left unproven is dropped.

// mayShare reports whether what is stored of a blob is a host's too.
func (r *Registry) mayShare(host string, d digest.Digest) bool {
	return r.cfg.Catalog.Supplier(d) == host || r.cfg.Store.Proven(d) && r.cfg.Catalog.Possesses(host, d)
}

// owns reports whether the repository's host may share what is stored of a blob,
// for which it shows what it has if need be. A blob without a supplier gets one.
func (p *Repository) owns(ctx context.Context, m *chunk.Map, far chunk.Source) (bool, error) {
	r, d := p.registry, m.Blob()
	if r.mayShare(p.Host, d) {
		return true, nil
	}
	if !r.cfg.Store.Proven(d) {
		return r.supply(p.Host, d, false), nil
	}
	return p.shows(ctx, m, r.cfg.Store, far)
}

// shows has the repository's host show that it has a blob, of which what is here is right, by a
// chunk. While it cannot be asked, who may read the blob elsewhere is believed.
func (p *Repository) shows(ctx context.Context, m *chunk.Map, here, far chunk.Source) (bool, error) {
	r, ref := p.registry, m.At(rand.N(m.Len()))
	stored, missing := here.Get(ctx, ref)
	if missing != nil {
		return false, nil // nothing to compare with
	}
	given, err := far.Get(ctx, ref)
	switch {
	case upstream.Mute(err):
		return true, p.readsElsewhere(m.Blob(), err)
	case chunk.IsCorrupt(err) || err == nil && !bytes.Equal(given, stored):
		return false, nil
	case err != nil:
		return false, err
	}
	r.report(r.cfg.Catalog.SetPossesses(p.Host, m.Blob()))
	return true, nil
}

// supply makes a host the supplier of a blob of which nothing is stored, or, if it
// has shown the whole blob, in place of another. It reports whether the host is
// it now.
func (r *Registry) supply(host string, d digest.Digest, shown bool) bool {
	r.supplying.Lock()
	defer r.supplying.Unlock()
	before := r.cfg.Catalog.Supplier(d)
	switch {
	case before == host:
		return true
	case before != "" && !shown && (r.stores(d) || r.cfg.Store.Proven(d)): // of which nothing need be stored
		return false
	}
	// In this order: who reads for the earlier one must not see the later one's.
	r.report(r.cfg.Catalog.SetSupplier(d, host))
	r.cfg.Store.Drop(d)
	return true
}

// stores reports whether anything of a blob is on disk.
func (r *Registry) stores(d digest.Digest) bool {
	info, err := r.cfg.Store.Stat(d)
	return err == nil && info.Stored > 0
}

// shown records that a host has sent all of a blob.
func (p *Repository) shown(d digest.Digest) {
	p.registry.report(p.registry.cfg.Catalog.SetPossesses(p.Host, d))
	if !p.registry.cfg.Store.Proven(d) {
		p.registry.supply(p.Host, d, true)
	}
}

// source returns where the chunks of a blob come from, and what proves them. near is where they
// are kept, if owned.
func (p *Repository) source(d digest.Digest, near ours, owned bool, far chunk.Source) (chunk.Source, chunk.Proofs) {
	r := p.registry
	if !owned {
		return chunk.Cache(nothing{}, far, r.flights.of(flightKey{p.Host, apartFromStore}), nil), apart{func() { p.shown(d); p.settled(d) }, func() { p.refuted(d) }}
	}
	proofs := proving{near, func() { p.shown(d); p.settled(d) }, func() { p.refuted(d) }}
	if r.cfg.Peers == nil {
		return chunk.Cache(near, far, r.flights.of(flightKey{p.Host, fromUpstream}), r.cfg.Report), proofs
	}
	fetched := &inOne{recorded{far, r.cfg.Peers, p.Host}, r.cfg.Peers, p.in(p.caller), p.first}
	held := r.cfg.Peers.Held(p.Host)
	far, flight := patient{chunk.First(held, fetched), held, r.cfg.Peers}, r.flights.of(flightKey{p.Host, fromUpstream})
	if p.lent {
		return chunk.Cache(lendable{near, r.cfg.Peers, p.Host}, p.tallied(far, fromMembers), flight, r.cfg.Report), proofs
	}
	// The flights of what this node gets as an owner are apart from those of its
	// readers: with one for both, two nodes that take each other for the owner
	// would wait for each other.
	src := r.cfg.Peers.Source(p.in(p.caller), chunk.Cache(near, far, flight, r.cfg.Report))
	return chunk.Cache(near, p.tallied(p.alike(src), fromMembers), r.flights.of(flightKey{p.Host, fromOwners}), r.cfg.Report), proofs
}

// near returns the store as far as what is in it of a blob is the host's.
func (p *Repository) near(d digest.Digest) ours {
	r := p.registry
	return ours{Store: r.cfg.Store, supplying: &r.supplying, still: func() bool { return r.mayShare(p.Host, d) }}
}

// passing is near for what only passes through: of that is kept what the settings say.
func (p *Repository) passing(d digest.Digest) ours {
	near := p.near(d)
	near.keeps = p.registry.cfg.Keeps
	return near
}

// ours is the store for as long as what is in it may be shared. The supplier does not
// change in the midst of what is done with it: between the change and the removal of
// what was stored, or by a chunk that is read before and goes into memory after, the
// earlier one's bytes would be the next one's.
type ours struct {
	Store
	supplying *sync.RWMutex
	still     func() bool
	keeps     func(chunk.Ref) bool // what goes farther than memory; nil for all
}

func (o ours) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	o.supplying.RLock()
	defer o.supplying.RUnlock()
	if !o.still() {
		return nil, chunk.ErrNotFound
	}
	begin := time.Now()
	asked, from := chunk.WithOrigin(ctx)
	p, err := o.Store.Get(asked, ref)
	if err == nil {
		chunk.SetOrigin(ctx, from())
		readFromDisk(ctx, ref, begin, from())
	}
	return p, err
}

func (o ours) Match(ctx context.Context, ref chunk.Ref, want digest.Digest) ([]byte, error) {
	o.supplying.RLock()
	defer o.supplying.RUnlock()
	if !o.still() {
		return nil, chunk.ErrNotFound
	}
	return o.Store.Match(ctx, ref, want)
}

func (o ours) Has(ref chunk.Ref) bool { return o.still() && o.Store.Has(ref) }

func (o ours) Lend(d digest.Digest, off, n int64) (*os.File, bool) {
	o.supplying.RLock()
	defer o.supplying.RUnlock()
	if !o.still() {
		return nil, false
	}
	return o.Store.Lend(d, off, n)
}

func (o ours) Put(ctx context.Context, ref chunk.Ref, p []byte) error {
	o.supplying.RLock()
	defer o.supplying.RUnlock()
	if !o.still() {
		return nil
	}
	if o.keeps != nil && !o.keeps(ref) {
		return o.Store.Pass(ctx, ref, p)
	}
	return o.Store.Put(ctx, ref, p)
}

// proving are the store's proofs, of a host that shows a blob by them.
type proving struct {
	ours
	shown, refuted func()
}

func (o proving) Proven(d digest.Digest) bool { return o.ours.Proven(d) && o.still() }

func (o proving) Link(ref chunk.Ref, after chunk.Link) {
	o.whileOurs(func() { o.Store.Link(ref, after) })
}

func (o proving) Before(ref chunk.Ref) (link chunk.Link) {
	o.whileOurs(func() { link = o.Store.Before(ref) })
	return link
}

func (o proving) Prove(d digest.Digest, total int64) {
	o.whileOurs(func() { o.Store.Prove(d, total) })
	o.shown()
}

func (o proving) Refute(d digest.Digest) {
	o.refuted() // first, so that what is under way from whom it came is not stored after
	o.whileOurs(func() { o.Store.Refute(d) })
}

func (o proving) whileOurs(do func()) {
	o.supplying.RLock()
	defer o.supplying.RUnlock()
	if o.still() {
		do()
	}
}

// nothing is a store that keeps nothing.
type nothing struct{}

func (nothing) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, chunk.ErrNotFound }
func (nothing) Put(context.Context, chunk.Ref, []byte) error   { return nil }

// apart are the proofs of a reader that has nothing to do with the store.
type apart struct{ shown, refuted func() }

func (apart) Proven(digest.Digest) bool    { return false }
func (apart) Link(chunk.Ref, chunk.Link)   {}
func (apart) Before(chunk.Ref) chunk.Link  { return "" }
func (a apart) Prove(digest.Digest, int64) { a.shown() }
func (a apart) Refute(digest.Digest)       { a.refuted() }

// flights are the fetches under way, of each host apart: a host that stalls must
// not hold up the readers of another. The zero value is ready to use.
type flights struct {
	mu     sync.Mutex
	byHost map[flightKey]*chunk.Flight
}

type flightKey struct {
	host string
	kind flightKind
}

// flightKind says where what is fetched comes from, and goes.
type flightKind int

const (
	fromUpstream   flightKind = iota // or who holds all of the blob; into the store
	fromOwners                       // other members; into the store
	apartFromStore                   // the upstream, and into nothing
)

func (f *flights) of(k flightKey) *chunk.Flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	flight := f.byHost[k]
	if flight == nil {
		const most = 1024
		if f.byHost == nil || len(f.byHost) >= most {
			f.byHost = make(map[flightKey]*chunk.Flight) // those that are forgotten end alone
		}
		flight = new(chunk.Flight)
		f.byHost[k] = flight
	}
	return flight
}
