package decide_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/tracker"
)

func TestLargeClustersReadFartherAhead(t *testing.T) {
	before := int64(0)
	for _, c := range []struct {
		members int
		least   int64
	}{{1, 0}, {8, 0}, {32, 64 << 20}, {10000, 64 << 20}} {
		got := decide.Ahead(c.members)
		if got < before || got < c.least || c.members <= 8 && got > 32<<20 {
			t.Errorf("%d members: %d bytes", c.members, got)
		}
		before = got
	}
	if before > 64<<20 {
		t.Errorf("%d bytes, of which a store has to keep all", before)
	}
}

// TestStripeSize: all members of a zone must know the same owners, so these are part of the protocol.
func TestStripeSize(t *testing.T) {
	for _, c := range []struct{ total, few, many int64 }{
		{0, 4 << 20, 1 << 20},
		{100e6, 4 << 20, 1 << 20},
		{128 << 20, 4 << 20, 1 << 20},
		{128<<20 + 1, 4 << 20, 2 << 20},
		{256 << 20, 4 << 20, 2 << 20},
		{256<<20 + 1, 4 << 20, 4 << 20},
		{chunk.MaxBlobSize, 4 << 20, 4 << 20},
	} {
		for members, want := range map[int]int64{1: c.few, 35: c.few, 36: c.many, 10000: c.many} {
			if got := decide.StripeSize(c.total, members); got != want || got%chunk.Size != 0 || chunk.StripeSize%got != 0 {
				t.Errorf("%d members place pieces of %d bytes of a blob of %d, want %d", members, got, c.total, want)
			}
		}
	}
}

// TestLargeCrowdsHaveWiderTrees: an owner sends to as many as the members that there are want it to, and as many
// are referred to each.
func TestLargeCrowdsHaveWiderTrees(t *testing.T) {
	before := 0
	for _, members := range []int{1, 8, 499, 500, 100000} {
		n := decide.FanOut(members)
		if n < before {
			t.Errorf("%d members: %d, less than of fewer", members, n)
		}
		before = n
		ss, served, referred := decide.NewSpreads(rand.New(rand.NewPCG(1, 2))), 0, make(map[tracker.ID]int)
		for i := range 1 + 2*n {
			ss.Enter(decide.Stripe{}, &decide.Request{
				From: tracker.ID(rune('a' + i)), FanOut: n, Stuck: func(time.Time) bool { return false },
				Decided: func(v decide.Verdict) {
					if v.Serve {
						served++
					} else {
						referred[v.Referral]++
					}
				},
			}, time.Time{})
		}
		most := 0
		for _, times := range referred {
			most = max(most, times)
		}
		if served != n || most > n {
			t.Errorf("%d members: %d are served and up to %d referred to one, want %d", members, served, most, n)
		}
	}
}
