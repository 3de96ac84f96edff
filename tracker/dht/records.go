package dht

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
)

// Bounds of what is kept for others.
const (
	maxProviders = 64 // of one blob
	sweepEvery   = time.Minute
)

var errNoRecord = errors.New("no record of a blob")

// records are what other sites have told this one, as the nearest to a blob's
// digest: who has it. It implements the ProviderStore of kad-dht, which lets a site
// speak for itself alone. When there are too many, the site with the most loses its
// oldest, so that none can push out what the others have said.
type records struct {
	max   int
	ttl   time.Duration
	now   func() time.Time
	local func(digest.Digest) (peer.AddrInfo, bool) // this site, if it has the blob

	mu    sync.Mutex
	count int
	blobs map[digest.Digest]map[peer.ID]*list.Element // of site.said
	sites map[peer.ID]*site                           // none without a record
	swept time.Time
}

// site is another one that has said something.
type site struct {
	addrs []ma.Multiaddr // the last it gave, for all that it has
	said  list.List      // of record, the oldest first
}

type record struct {
	blob  digest.Digest
	by    peer.ID
	until time.Time
}

func newRecords(max int, ttl time.Duration, now func() time.Time, local func(digest.Digest) (peer.AddrInfo, bool)) *records {
	return &records{
		max: max, ttl: ttl, now: now, local: local,
		blobs: make(map[digest.Digest]map[peer.ID]*list.Element),
		sites: make(map[peer.ID]*site),
	}
}

// AddProvider takes what a site says: that it has a blob; with the address
// [withdrawn], that it has it no more; and of its own ID in place of a blob, that it
// has nothing.
func (r *records) AddProvider(_ context.Context, key []byte, from peer.AddrInfo) error {
	back := takesBack(from.Addrs)
	d, ok := digestOf(key)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case back && string(key) == string(from.ID):
		r.forget(from.ID)
	case !ok:
		return errNoRecord
	case back:
		r.drop(r.blobs[d][from.ID])
	case len(from.Addrs) > 0:
		r.add(d, from)
	}
	return nil
}

func (r *records) add(d digest.Digest, from peer.AddrInfo) {
	now := r.now()
	r.sweep(now)
	r.drop(r.blobs[d][from.ID])
	if len(r.blobs[d]) >= maxProviders {
		r.drop(oldest(r.blobs[d]))
	}
	if r.count >= r.max {
		r.drop(r.mostSaid().Front())
	}
	s, by := r.sites[from.ID], r.blobs[d]
	if s == nil {
		s = &site{}
		r.sites[from.ID] = s
	}
	if by == nil {
		by = make(map[peer.ID]*list.Element)
		r.blobs[d] = by
	}
	s.addrs = slices.Clone(from.Addrs)
	by[from.ID] = s.said.PushBack(record{d, from.ID, now.Add(r.ttl)})
	r.count++
}

// GetProviders returns who has a blob, this site among them.
func (r *records) GetProviders(_ context.Context, key []byte) ([]peer.AddrInfo, error) {
	d, ok := digestOf(key)
	if !ok {
		return nil, nil
	}
	var all []peer.AddrInfo
	if self, ok := r.local(d); ok {
		all = append(all, self)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for id, e := range r.blobs[d] {
		if now.Before(e.Value.(record).until) {
			all = append(all, peer.AddrInfo{ID: id, Addrs: slices.Clone(r.sites[id].addrs)})
		}
	}
	return all, nil
}

// Close implements kad-dht's ProviderStore.
func (r *records) Close() error { return nil }

// drop removes a record, if there is one, and what hangs on it alone.
func (r *records) drop(e *list.Element) {
	if e == nil {
		return
	}
	rec := e.Value.(record)
	s, by := r.sites[rec.by], r.blobs[rec.blob]
	s.said.Remove(e)
	delete(by, rec.by)
	r.count--
	if s.said.Len() == 0 {
		delete(r.sites, rec.by)
	}
	if len(by) == 0 {
		delete(r.blobs, rec.blob)
	}
}

func (r *records) forget(id peer.ID) {
	for s := r.sites[id]; s != nil && s.said.Len() > 0; {
		r.drop(s.said.Front())
	}
}

// sweep removes what has expired, once in a while.
func (r *records) sweep(now time.Time) {
	if now.Sub(r.swept) < sweepEvery {
		return
	}
	r.swept = now
	for _, s := range r.sites {
		for e := s.said.Front(); e != nil && !now.Before(e.Value.(record).until); e = s.said.Front() {
			r.drop(e)
		}
	}
}

// mostSaid returns what the site has said that has said the most.
func (r *records) mostSaid() *list.List {
	var most *list.List
	for _, s := range r.sites {
		if most == nil || s.said.Len() > most.Len() {
			most = &s.said
		}
	}
	return most
}

func oldest(by map[peer.ID]*list.Element) *list.Element {
	var first *list.Element
	for _, e := range by {
		if first == nil || e.Value.(record).until.Before(first.Value.(record).until) {
			first = e
		}
	}
	return first
}
