package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/granary-oci/granary/tracker"
)

// result is what came of a run. Times are virtual.
type result struct {
	Name      string
	Nodes     int
	Times     []time.Duration // of the nodes that read all of it, the shortest first
	Failed    int             // nodes that should have, and have not
	Bound     time.Duration
	Registry  float64 // bytes that left it, in copies of the image, of each zone
	Requests  int     // that it got
	Uplink    float64 // of all uplinks, the share that was used until the last node was done
	Busiest   float64 // of all nodes, what the busiest sent, in copies of the image
	Duplicate float64 // bytes that came in vain, as a share of all
	Control   float64 // messages of a node, in and out together, for each stripe of the image
	MostTold  int64   // messages that the busiest node has sent
	Crossed   map[string]float64
	Wall      time.Duration `json:"-"`
	Events    int
}

// total returns the bytes of what is read.
func (s setting) total() (n int64) {
	for _, size := range s.Blobs {
		n += size
	}
	return n
}

// bound returns what no system could be faster than: the image must leave the registry, enter each node,
// and leave someone for each.
func (s setting) bound() time.Duration {
	size, n := float64(s.total()), float64(s.Nodes)
	zones := float64(max(s.Zones, 1))
	bound := max(zones*size/s.Egress, size/s.Down, n*size/(n*s.Up+s.Egress))
	if s.Pipe > 0 {
		bound = max(bound, size/s.Pipe) // the registry is in none of the zones
	}
	return time.Duration(1e9 * bound)
}

// within is for how long a run may go on, in virtual time.
const within = 2 * time.Hour

// start has nodes pull, each a moment after the last: what starts at once does not start in the same microsecond.
func (c *cluster) start(nodes []*node, over time.Duration) {
	random := rand.New(rand.NewPCG(c.Seed, 2))
	for _, n := range nodes {
		c.left++
		c.after(time.Duration(random.Int64N(int64(over)+1)), n.pull)
	}
}

// run lets everything happen until all who pull have done so.
func (c *cluster) run(name string) result {
	began, events := time.Now(), 0
	for c.left > 0 && c.now < within && c.step() {
		events++
	}
	r := result{Name: name, Nodes: len(c.nodes), Bound: c.bound(), Requests: c.requests, Events: events, Wall: time.Since(began), Failed: c.left}
	size := float64(c.total())
	r.Registry = float64(c.served) / size / float64(c.Zones)
	var up, down, dup, told int64
	for _, n := range c.nodes {
		if n.took > 0 {
			r.Times = append(r.Times, n.took)
		}
		up, down, dup, told = up+n.up.moved, down+n.down.moved, dup+n.dup, told+n.told+n.heard
		r.Busiest = max(r.Busiest, float64(n.up.moved)/size)
		r.MostTold = max(r.MostTold, n.told)
	}
	slices.Sort(r.Times)
	if c.now > 0 {
		r.Uplink = float64(up) / (c.Up * float64(len(c.nodes)) * c.now.Seconds())
	}
	if down > 0 {
		r.Duplicate = float64(dup) / float64(down)
	}
	r.Control = float64(told) / float64(len(c.nodes)) / float64(c.stripes())
	r.Crossed = c.crossed()
	return r
}

// crossed returns what went from zone to zone, and to each from the registry, in copies of the image.
func (c *cluster) crossed() map[string]float64 {
	all := make(map[string]float64)
	for k, l := range c.pipes {
		from := "registry"
		if k[0] >= 0 {
			from = fmt.Sprint("z", k[0])
		}
		if c.Zones > 1 && k[1] >= 0 {
			all[fmt.Sprintf("%s to z%d", from, k[1])] = float64(l.moved) / float64(c.total())
		}
	}
	return all
}

// quantile returns the time within which a share of the nodes had all.
func (r result) quantile(q float64) time.Duration {
	if len(r.Times) == 0 {
		return 0
	}
	return r.Times[min(int(q*float64(len(r.Times))), len(r.Times)-1)]
}

// members returns who is one.
func (c *cluster) members() (peers []tracker.Peer) {
	for _, n := range c.nodes {
		if !n.dead || !n.noticed {
			peers = append(peers, n.peer)
		}
	}
	return peers
}

// tell has all nodes see who is a member now, after a time.
func (c *cluster) tell(after time.Duration) {
	r := c.newRoster(c.members())
	c.after(after, func() {
		for _, n := range c.nodes {
			if n.roster.at <= r.at {
				n.see(r)
			}
		}
	})
}

// crash ends a node, of which its members hear after a time.
func (c *cluster) crash(n *node, noticed time.Duration) {
	n.dead = true
	if n.took == 0 {
		c.left--
	}
	c.after(noticed, func() { n.noticed = true; c.tell(0) })
}

// join adds a node, which pulls at once and which others hear of after a time.
func (c *cluster) join(heard time.Duration) *node {
	n := c.add()
	n.see(c.newRoster(c.members()))
	c.tell(heard)
	c.left++
	n.pull()
	return n
}
