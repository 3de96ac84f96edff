package virtual

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/p2p/p2ptest"
	"github.com/granary-oci/granary/tracker"
)

// links are the rates of a cluster's links in bytes per second.
type links struct{ registry, node int64 }

const (
	gigabit  = 1e9 / 8
	latency  = 500 * time.Microsecond
	flush    = 200 * time.Millisecond // until keepers are told, as tracker/gossip
	noticed  = 10 * time.Second       // until gossip sees a crash
	informed = 500 * time.Millisecond // until all know who joins or leaves
)

// cluster is nodes, a registry, and what is between them.
type cluster struct {
	t        *testing.T
	img      *image
	links    links
	net      *p2ptest.Network
	registry *registry
	random   *rand.Rand

	mu    sync.Mutex
	nodes []*node
	peers []tracker.Peer // as everybody knows them
}

// newCluster starts n nodes that know each other, in these zones in turn.
func newCluster(t *testing.T, img *image, n int, l links, zones ...string) *cluster {
	net := p2ptest.NewNetwork()
	net.SetLatency(latency)
	net.SetLink(registryID, l.registry, 0)
	c := &cluster{t: t, img: img, links: l, net: net, registry: newRegistry(net, img), random: rand.New(rand.NewPCG(7, 8))}
	if len(zones) == 0 {
		zones = []string{""}
	}
	for i := range n {
		c.add(zones[i%len(zones)])
	}
	c.tell()
	return c
}

// add starts a node that nobody knows yet.
func (c *cluster) add(zone string) *node {
	c.mu.Lock()
	id := tracker.ID(fmt.Sprintf("node-%02d", len(c.nodes)))
	n := &node{peer: tracker.Peer{ID: id, Name: string(id), Zone: zone, Weight: 1}, cluster: c, store: newStore(c.img)}
	n.members = tracker.NewStatic(tracker.NewView(n.peer, nil))
	c.nodes = append(c.nodes, n)
	c.peers = append(c.peers, n.peer)
	c.mu.Unlock()
	c.net.SetLink(id, c.links.node, c.links.node)
	n.start(strings.NewReader(""))
	return n
}

// change changes who is a member.
func (c *cluster) change(f func(peers []tracker.Peer) []tracker.Peer) {
	c.mu.Lock()
	c.peers = f(slices.Clone(c.peers))
	c.mu.Unlock()
	c.tell()
}

// lose takes a node off the members, and join puts it on again.
func (c *cluster) lose(n *node) {
	c.change(func(peers []tracker.Peer) []tracker.Peer {
		return slices.DeleteFunc(peers, func(p tracker.Peer) bool { return p.ID == n.peer.ID })
	})
}

func (c *cluster) join(n *node) {
	c.change(func(peers []tracker.Peer) []tracker.Peer { return append(peers, n.peer) })
}

// tell tells every node who is a member, and keepers who holds what.
func (c *cluster) tell() {
	c.mu.Lock()
	nodes, peers := slices.Clone(c.nodes), slices.Clone(c.peers)
	c.mu.Unlock()
	for _, n := range nodes {
		n.members.Set(tracker.NewView(n.peer, peers))
	}
	for _, n := range nodes {
		for _, d := range n.store.all() {
			c.announce(n, d)
		}
	}
}

// told is told of what has become of a blob on a node.
func (c *cluster) told(n *node, l *life, d digest.Digest, proven bool) {
	if !proven {
		c.t.Errorf("%s: blob %s does not match its digest", n.peer.ID, d)
		return
	}
	l.client.Claims().Of(repo.Host).Proven(d)
	time.AfterFunc(flush, func() { c.announce(n, d) })
}

// announce tells the keepers of a blob that a node has all of it.
func (c *cluster) announce(n *node, d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range n.members.View().Keepers(string(d), tracker.Copies) {
		for _, to := range c.nodes {
			if to.peer.ID == k.ID {
				to.now().providers.Announce(d, n.peer.ID)
			}
		}
	}
}

// pull makes nodes pull at once, and returns when all have the image.
func (c *cluster) pull(nodes ...*node) {
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := n.pull(); err != nil {
				c.t.Error(err)
			}
		})
	}
	wg.Wait()
}

// close ends everything, so that the bubble may end.
func (c *cluster) close() {
	c.net.Close()
	for _, n := range c.nodes {
		n.members.Set(tracker.NewView(n.peer, nil)) // nobody is looked for any more
		n.end()
	}
	time.Sleep(time.Minute)
}

// sent returns how many bytes have left the registry.
func (c *cluster) sent() int64 {
	_, out := c.net.Traffic(registryID)
	return out
}

// uploads returns what each node has sent to others, the least first.
func (c *cluster) uploads() (all []int64) {
	for _, n := range c.nodes {
		_, out := c.net.Traffic(n.peer.ID)
		all = append(all, out)
	}
	slices.Sort(all)
	return all
}
