package tracker

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// Copies is how many members keep what is to outlive any one of them: the
// providers of a blob, what is known of a repository.
const Copies = 3

// StripeKey returns the key by which a stripe of a blob is placed.
func StripeKey(blob digest.Digest, stripe int) string {
	return string(blob) + "/" + strconv.Itoa(stripe)
}

// Owners returns the first n members of the viewer's zone that answer for key, best
// first; fewer if there are fewer. A cluster in which all drain has no owners.
func (v *View) Owners(key string, n int) []Peer {
	return v.rank(key, n, func(p *Peer) bool { return p.places() && p.Zone == v.self.Zone })
}

// Neighbours returns the first n other members that own, owned or will own what has
// this key: those that drain are among them, and this one is not.
func (v *View) Neighbours(key string, n int) []Peer {
	return v.rank(key, n, func(p *Peer) bool { return p.ID != v.self.ID && p.Zone == v.self.Zone && p.Weight > 0 })
}

// Keepers is Owners in all zones.
func (v *View) Keepers(key string, n int) []Peer {
	return v.rank(key, n, (*Peer).places)
}

func (v *View) rank(key string, n int, eligible func(*Peer) bool) []Peer {
	type ranked struct {
		peer  *Peer
		score float64
		tie   uint64
	}
	k := hash(key)
	n = max(0, min(n, len(v.peers)))
	best := make([]ranked, 0, 2*n) // of those so far, and some that are no better than the n-th
	cut := func() {
		slices.SortFunc(best, func(a, b ranked) int {
			return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(b.tie, a.tie))
		})
		best = best[:min(len(best), n)]
	}
	least := math.Inf(-1) // score of the n-th of those that were cut
	for i := range v.peers {
		p := &v.peers[i]
		if n == 0 || !eligible(p) {
			continue
		}
		draw := mix(v.seeds[i] ^ mix(k))
		s := score(draw, p.Weight)
		if s < least {
			continue
		}
		if len(best) == 2*n {
			cut()
			least = best[n-1].score
		}
		best = append(best, ranked{p, s, draw})
	}
	cut()
	owners := make([]Peer, 0, len(best))
	for _, r := range best {
		owners = append(owners, *r.peer)
	}
	return owners
}

// score turns a draw into one that is the highest of all in proportion to its
// weight: -weight/ln(u) for u uniform in (0, 1) (Schindelhauer and Schomaker,
// "Weighted distributed hash tables", 2005).
func score(draw uint64, weight int) float64 {
	u := (float64(draw>>11) + 0.5) / (1 << 53)
	return -float64(min(weight, MaxWeight)) / math.Log(u)
}

func hash(s string) uint64 {
	h := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint64(h[:])
}

// mix spreads the bits of x: the finalizer of MurmurHash3, a bijection.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
