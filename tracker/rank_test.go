package tracker_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/granary-oci/granary/tracker"
)

// TestTheBestOfManyAreTheFirstOfAll, however many are asked for.
func TestTheBestOfManyAreTheFirstOfAll(t *testing.T) {
	same := func(a, b tracker.Peer) bool { return a.ID == b.ID }
	random := rand.New(rand.NewPCG(1, 2))
	for _, members := range []int{1, 2, 19, 20, 21, 400} {
		var peers []tracker.Peer
		for i := range members {
			peers = append(peers, tracker.Peer{ID: tracker.ID(fmt.Sprint("m", i)), Weight: 1 + random.IntN(3), Draining: random.IntN(5) == 0})
		}
		v := tracker.NewView(peers[0], peers)
		for i := range 50 {
			key := fmt.Sprint("key", i)
			all := v.Owners(key, members)
			for _, n := range []int{0, 1, 3, 10, members - 1, members + 5} {
				if got := v.Owners(key, n); !slices.EqualFunc(got, all[:min(n, len(all))], same) {
					t.Fatalf("the first %d of %d members are not the first of all", n, members)
				}
			}
		}
	}
}

// BenchmarkOwners is of the owners of one stripe, of as many as are asked for it.
func BenchmarkOwners(b *testing.B) {
	for _, members := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(members, " members"), func(b *testing.B) {
			var peers []tracker.Peer
			for i := range members {
				peers = append(peers, tracker.Peer{ID: tracker.ID(fmt.Sprint("m", i)), Weight: 1})
			}
			v := tracker.NewView(peers[0], peers)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				v.Owners(tracker.StripeKey("sha256:00", i), 10)
			}
		})
	}
}
