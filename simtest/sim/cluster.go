package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/tracker"
)

// maxStripe is how many chunks a stripe may have.
const maxStripe = chunk.StripeSize / chunk.Size

// blob is a blob of an image.
type blob struct {
	digest  digest.Digest
	size    int64
	striped int64 // the size of its stripes, in bytes
}

func (b blob) chunks() int  { return int((b.size + chunk.Size - 1) / chunk.Size) }
func (b blob) stripe() int  { return int(b.striped / chunk.Size) } // its chunks
func (b blob) stripes() int { return (b.chunks() + b.stripe() - 1) / b.stripe() }

// at returns the stripe that a chunk is of, and where in it.
func (b blob) at(i int) (stripe, in int) { return i / b.stripe(), i % b.stripe() }

// chunkSize returns the size of a chunk in bytes.
func (b blob) chunkSize(i int) int64 { return min(chunk.Size, b.size-int64(i)*chunk.Size) }

// stripe is one of a blob of the cluster.
type stripe struct{ blob, n int }

// mask says of which chunks of a stripe something is so.
type mask uint8

func (c *cluster) all(s stripe) mask {
	b := c.blobs[s.blob]
	return 1<<min(b.stripe(), b.chunks()-s.n*b.stripe()) - 1
}

func (c *cluster) chunkSize(s stripe, i int) int64 {
	b := c.blobs[s.blob]
	return b.chunkSize(s.n*b.stripe() + i)
}

func (c *cluster) stripes() (n int) {
	for _, b := range c.blobs {
		n += b.stripes()
	}
	return n
}

// setting is what a run is of. Rates are bytes per second.
type setting struct {
	Seed     uint64
	Nodes    int
	Blobs    []int64
	Up, Down float64
	Egress   float64       // of the registry
	First    time.Duration // until the registry begins an answer, beside the latency
	Latency  time.Duration // one way
	Zones    int
	Between  time.Duration // one way, from zone to zone
	Pipe     float64       // from each zone to each other
	Loss     float64
	Timing   decide.Timing
}

// cluster is nodes, a registry, and what is between them.
type cluster struct {
	setting
	network
	blobs    []blob
	registry host
	served   int64 // bytes that have left the registry
	requests int
	nodes    []*node
	byID     map[tracker.ID]*node
	rosters  int
	left     int // nodes that are still pulling
}

func newCluster(s setting) *cluster {
	s.Timing = s.Timing.WithDefaults()
	if s.Zones == 0 {
		s.Zones = 1
	}
	c := &cluster{setting: s, byID: make(map[tracker.ID]*node)}
	c.network = network{loop: new(loop), random: rand.New(rand.NewPCG(s.Seed, 1)), latency: s.Latency, between: s.Between, loss: s.Loss, pipes: make(map[[2]int]*link), pipe: s.Pipe}
	for i, size := range s.Blobs {
		c.blobs = append(c.blobs, blob{digest.FromString(fmt.Sprint("blob ", s.Seed, i)), size, decide.StripeSize(size, s.Nodes/s.Zones)})
	}
	c.registry = host{net: &c.network, zone: -1, up: link{rate: s.Egress}, down: link{rate: s.Egress}}
	for range s.Nodes {
		c.add()
	}
	var peers []tracker.Peer
	for _, n := range c.nodes {
		peers = append(peers, n.peer)
	}
	r := c.newRoster(peers)
	for _, n := range c.nodes {
		n.see(r)
	}
	return c
}

// roster is who is a member, as those know it that have heard as much.
type roster struct {
	view    *tracker.View
	at      int // how many were before
	ranks   map[rankKey][]tracker.Peer
	members map[string]int // of each zone
}

type rankKey struct {
	zone string
	key  string
	all  bool
}

func (c *cluster) newRoster(peers []tracker.Peer) *roster {
	v := tracker.NewView(peers[0], peers)
	c.rosters++
	r := &roster{view: v, at: c.rosters, ranks: make(map[rankKey][]tracker.Peer), members: make(map[string]int)}
	for _, p := range peers {
		r.members[p.Zone]++
	}
	return r
}

const ranked = 8

// owners returns the first owners of a key in a zone: what [tracker.View.Owners] says, once for all
// who see the same.
func (r *roster) owners(zone, key string) []tracker.Peer {
	k := rankKey{zone, key, false}
	all, ok := r.ranks[k]
	if !ok {
		all = r.view.As(tracker.Peer{Zone: zone}).Owners(key, ranked)
		r.ranks[k] = all
	}
	return all
}

func (r *roster) keepers(key string) []tracker.Peer {
	k := rankKey{"", key, true}
	all, ok := r.ranks[k]
	if !ok {
		all = r.view.Keepers(key, tracker.Copies)
		r.ranks[k] = all
	}
	return all
}
