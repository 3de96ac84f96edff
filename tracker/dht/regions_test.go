package dht

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
)

// Whom a region names for a key are the sites that are nearest to it, of all there are.
func TestRegionsNameTheNearestSites(t *testing.T) {
	for _, n := range []int{1, 7, 8, 9, 20, 200} {
		var all []peer.ID
		for i := range n {
			all = append(all, peer.ID(fmt.Sprint("site ", i)))
		}
		lookups := 0
		r := newRegions(usual, time.Now, func(_ context.Context, key multihash.Multihash) ([]peer.ID, error) {
			lookups++
			return kb.SortClosestPeers(all, placeOf(key))[:min(n, nearest)], nil
		})
		keys := blobs(500)
		slices.Sort(keys)
		var places []multihash.Multihash
		for _, d := range keys {
			places = append(places, mustKey(d))
		}
		slices.SortFunc(places, func(a, b multihash.Multihash) int { return slices.Compare(placeOf(a), placeOf(b)) })
		for _, key := range places {
			got, err := r.nearest(t.Context(), key, placeOf(key))
			if want := kb.SortClosestPeers(all, placeOf(key)); err != nil || !slices.Equal(got, want[:min(n, copies)]) {
				t.Fatalf("of %d sites it names %v, %v", n, got, err)
			}
		}
		t.Logf("%d sites: %d lookups for %d keys", n, lookups, len(keys))
		if lookups > max(1, n) {
			t.Errorf("%d lookups are made among %d sites", lookups, n)
		}
	}
}
