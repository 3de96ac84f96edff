package virtual

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/granary-oci/granary/tracker"
)

// thin links make a pull take long enough for things to go wrong in its midst.
var thin = links{registry: 4 * mib, node: gigabit}

// small returns an image that is pulled over such links in 12 s.
func small() *image { return newImage(26*mib, 15*mib, 7*mib) }

// What only a node has that freezes in the midst of a pull is fetched once more, and
// nobody else sees an error.
func TestANodeFreezes(t *testing.T) {
	img := small()
	simulate(t, func(t *testing.T) {
		c := newCluster(t, img, few, thin)
		defer c.close()
		frozen := c.largestOwner()
		time.AfterFunc(4*time.Second, func() {
			c.net.Freeze(frozen.peer.ID)
			frozen.end()
		})
		time.AfterFunc(4*time.Second+noticed, func() { c.lose(frozen) })
		go frozen.pull() // of which nothing comes
		c.pull(c.except(frozen)...)
		c.report("a node freezes at 4 s")
		c.mayHaveSent(1 + c.copies(c.owned(frozen)) + slack)
		c.mayHaveUploaded(4)
	})
}

// What a late node has missed does not leave the registry for it once more, but for
// what it owns from then on and nobody has all of.
func TestANodeJoinsLate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after time.Duration
		again bool // what it owns may leave the registry for it once more
	}{
		{"in the midst", 6 * time.Second, true},
		{"when all is there", time.Minute, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img := small()
			simulate(t, func(t *testing.T) {
				c := newCluster(t, img, few-1, thin)
				defer c.close()
				early := c.nodes
				var wg sync.WaitGroup
				wg.Go(func() { c.pull(early...) })
				time.Sleep(tt.after)
				late := c.add("")
				time.Sleep(informed)
				c.tell()
				wg.Go(func() { c.pull(late) })
				wg.Wait()
				c.report("a node joins " + tt.name)
				c.t.Logf("  the late node took %v", round(late.took))
				most := 1 + slack
				if tt.again {
					most += c.copies(c.owned(late))
				}
				c.mayHaveSent(most)
				c.mayHaveUploaded(4)
			})
		})
	}
}

// slack is for what a registry is asked besides bytes.
const slack = 0.001

// An image leaves the registry once for each zone at most.
func TestTwoZones(t *testing.T) {
	img := small()
	simulate(t, func(t *testing.T) {
		c := newCluster(t, img, few, thin, "a", "b")
		defer c.close()
		c.pull(c.nodes...)
		c.report("two zones")
		c.mayHaveSent(2 + slack)
		c.mayHaveUploaded(4)
	})
}

// Nodes that are restarted one after the other during a pull keep what they have, and
// a runtime whose node has gone asks again when it is back. What an owner was about to
// fetch leaves the registry again; nothing does for each node.
func TestAllNodesRestart(t *testing.T) {
	img := small()
	simulate(t, func(t *testing.T) {
		c := newCluster(t, img, few, thin)
		defer c.close()
		var wg sync.WaitGroup
		for _, n := range c.nodes {
			wg.Go(func() { c.pullAgain(n) })
		}
		for _, n := range c.nodes {
			c.restart(n)
		}
		wg.Wait()
		c.report("all nodes restart")
		c.mayHaveSent(2.5)
		c.mayHaveUploaded(4)
	})
}

// pullAgain pulls until a life of the node is long enough.
func (c *cluster) pullAgain(n *node) {
	for {
		l := n.now()
		err := n.pull()
		if err == nil {
			return
		}
		if l.ctx.Err() == nil {
			c.t.Errorf("a node that was not restarted failed: %v", err)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// restart drains a node, ends it and starts it again.
func (c *cluster) restart(n *node) {
	drain := func(draining bool) {
		c.change(func(peers []tracker.Peer) []tracker.Peer {
			for i := range peers {
				if peers[i].ID == n.peer.ID {
					peers[i].Draining = draining
				}
			}
			return peers
		})
	}
	drain(true)
	time.Sleep(informed)
	c.lose(n)
	var claims bytes.Buffer
	if err := n.now().client.Claims().Encode(&claims); err != nil {
		c.t.Error(err)
	}
	c.revive(n, &claims)
	time.Sleep(informed)
	c.join(n)
}

// revive kills a node and starts it again.
func (c *cluster) revive(n *node, claims io.Reader) {
	n.end()
	c.net.Kill(n.peer.ID)
	time.Sleep(200 * time.Millisecond)
	c.net.Revive(n.peer.ID)
	n.start(claims)
}

// A node that crashes and is back before gossip has seen it does not know any more
// who vouches for what it has. It is fetched once more, and not by each node.
func TestANodeCrashes(t *testing.T) {
	img := small()
	simulate(t, func(t *testing.T) {
		c := newCluster(t, img, few, thin)
		defer c.close()
		crashed := c.largestOwner()
		time.AfterFunc(6*time.Second, func() { c.revive(crashed, strings.NewReader("")) })
		var wg sync.WaitGroup
		wg.Go(func() { c.pullAgain(crashed) })
		wg.Go(func() { c.pull(c.except(crashed)...) })
		wg.Wait()
		c.report("a node crashes at 6 s and is back at once")
		c.mayHaveSent(1 + 2*c.copies(c.owned(crashed)) + slack)
		c.mayHaveUploaded(4)
	})
}

// What one node has, all can have, with the registry dead; and not all from that one.
func TestTheRegistryDies(t *testing.T) {
	img := small()
	simulate(t, func(t *testing.T) {
		c := newCluster(t, img, few, links{gigabit, gigabit})
		defer c.close()
		c.pull(c.nodes[0])
		time.Sleep(time.Second)
		c.net.Kill(registryID)
		c.pull(c.nodes[1:]...)
		c.report("the registry dies after the first node has the image")
		c.mayHaveSent(1 + slack)
		c.mayHaveUploaded(4)
	})
}

// except returns all nodes but one.
func (c *cluster) except(one *node) (others []*node) {
	for _, n := range c.nodes {
		if n != one {
			others = append(others, n)
		}
	}
	return others
}
