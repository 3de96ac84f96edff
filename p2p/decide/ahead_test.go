package decide_test

import (
	"testing"

	"github.com/granary-oci/granary/p2p/decide"
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
