package dht

import (
	"context"
	"errors"
	"slices"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
)

const (
	regionFor  = 10 * time.Minute // that the sites of a region are taken to be the same, at most
	lookupTime = 30 * time.Second
)

var errNobody = errors.New("no other site is found")

// regions finds the sites that are nearest to keys, with one lookup for all that are in
// one region of the key space. Keys come in order, so one region is remembered. It is
// used by one goroutine.
type regions struct {
	lookup func(context.Context, multihash.Multihash) ([]peer.ID, error)
	now    func() time.Time
	lasts  time.Duration // how long the sites of a region are taken to be the same
	retry  time.Duration // how long nobody is looked up after that has failed
	silent time.Time     // until when that is
	last   region
}

// region is the part of the key space that begins with the same bits as around.
type region struct {
	around kb.ID
	bits   int
	sites  []peer.ID // the nearest to around; those that are nearest to any key of the region are among them
	until  time.Time
}

func newRegions(p pace, now func() time.Time, lookup func(context.Context, multihash.Multihash) ([]peer.ID, error)) *regions {
	return &regions{lookup: lookup, now: now, lasts: min(regionFor, p.look), retry: p.retry}
}

// nearest returns the sites that are to be told of a key.
func (r *regions) nearest(ctx context.Context, key multihash.Multihash, place kb.ID) ([]peer.ID, error) {
	now := r.now()
	if !now.Before(r.last.until) || len(r.last.sites) == 0 || kb.CommonPrefixLen(r.last.around, place) < r.last.bits {
		if now.Before(r.silent) {
			return nil, errNobody
		}
		if err := r.explore(ctx, key, place); err != nil {
			r.silent = r.now().Add(r.retry)
			return nil, err
		}
	}
	near := kb.SortClosestPeers(r.last.sites, place)
	return near[:min(len(near), copies)], nil
}

func (r *regions) explore(ctx context.Context, key multihash.Multihash, place kb.ID) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	sites, err := r.lookup(ctx, key)
	if err != nil {
		return err
	}
	if len(sites) == 0 {
		return errNobody
	}
	r.last = region{place, covers(place, sites), sites, r.now().Add(r.lasts)}
	return nil
}

// avoid forgets a site that could not be told, until the next lookup.
func (r *regions) avoid(id peer.ID) {
	r.last.sites = slices.DeleteFunc(r.last.sites, func(other peer.ID) bool { return other == id })
}

// covers returns how many leading bits a key must have in common with place for the
// [copies] of the sites that are nearest to the key to be among these, which are the nearest
// to place. Fewer than were asked for are all there are.
//
// Distances to both keys are the same in those bits. Of a site that is not among these they
// are no less than the farthest one's, so each that is nearer than that one by
// these bits alone is nearer to the key than all that are not known. Two sites differ
// in a bit of the distance where they differ in it themselves.
func covers(place kb.ID, sites []peer.ID) int {
	if len(sites) < nearest {
		return 0
	}
	sites = kb.SortClosestPeers(sites, place)
	farthest := kb.ConvertPeerID(sites[len(sites)-1])
	var alike []int
	for _, id := range sites[:len(sites)-1] {
		alike = append(alike, kb.CommonPrefixLen(farthest, kb.ConvertPeerID(id)))
	}
	slices.Sort(alike)
	return alike[copies-1] + 1
}
