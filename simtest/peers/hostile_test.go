package peers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/simtest/peers/hostile"
	"github.com/granary-oci/granary/tracker"
)

// TestAHostileMemberHarmsNobody: it owns its share of an image that all others pull
// at once, and says that it has all of it. Whatever it answers, each client gets each
// byte, little more leaves the registry, and whoever asks it finds out what it is.
func TestAHostileMemberHarmsNobody(t *testing.T) {
	t.Parallel()
	layers := [][]byte{random(9<<20+1, 91), random(5<<20, 92)}
	for _, how := range hostile.Behaviours {
		t.Run(how.Name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			img := r.push("app", "v1", layers...)
			r.delay, r.rate = 10*time.Millisecond, 16<<20
			c := newCluster(t, r, 3)
			h, share := c.infiltrate(img, how)
			once := img.size() + share
			if how.Late {
				c.readAll(img, c.members...)
				once *= int64(len(c.members)) // each goes to the registry alone then
			}
			pullAtOnce(t, img, 1, c.members...)
			if sent := r.sent.Load(); sent > once && !slow {
				t.Errorf("%d bytes left the registry, for an image of %d of which the hostile member owns %d", sent, img.size(), share)
			}
			c.findsOut(h, how.State)
		})
	}
}

// infiltrate makes a hostile member one of the cluster, and returns how many bytes of
// an image it owns.
func (c *cluster) infiltrate(img *image, how hostile.Behaviour) (h *hostile.Member, share int64) {
	c.Helper()
	identity, share := c.ownerOf(img)
	cfg := hostile.Config{Identity: identity, P2P: "/ip4/127.0.0.1/tcp/0", Gossip: "127.0.0.1:0", Secrets: [][]byte{[]byte(secret)}}
	for _, m := range c.members {
		cfg.Join = append(cfg.Join, m.Status().Cluster.Gossip)
	}
	h, err := hostile.Start(cfg, how)
	if err != nil {
		c.Fatal(err)
	}
	ctx, leave := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	c.Cleanup(func() {
		leave()
		if err := <-ended; err != nil {
			c.Logf("the hostile member ended with %v", err)
		}
	})
	eventually(c.T, "the hostile member is one", func() bool {
		return !slices.ContainsFunc(c.members, func(m *member) bool { return m.known(h.ID()).State != "up" })
	})
	return h, share
}

// ownerOf returns an identity that would own something of each layer, and keep what
// is known of it; but no more than half of all.
func (c *cluster) ownerOf(img *image) (*libp2p.Identity, int64) {
	c.Helper()
	for {
		identity, err := libp2p.NewIdentity()
		if err != nil {
			c.Fatal(err)
		}
		share, all := c.shareOf(identity.ID(), img)
		if all && share <= img.size()/2 {
			return identity, share
		}
	}
}

// shareOf returns how many bytes of the layers a member with this ID would own, and
// whether that is some of each.
func (c *cluster) shareOf(id tracker.ID, img *image) (share int64, all bool) {
	self := tracker.Peer{ID: id, Weight: hostile.Weight}
	peers := make([]tracker.Peer, 0, len(c.members))
	for _, m := range c.members {
		peers = append(peers, m.known(m.Status().Cluster.ID).Peer)
	}
	view := tracker.NewView(self, peers)
	is := func(p tracker.Peer) bool { return p.ID == id }
	all = true
	for _, d := range img.order[1:] {
		before, size := share, int64(len(img.blobs[d]))
		for at := int64(0); at < size; at += chunk.StripeSize {
			if slices.ContainsFunc(view.Owners(tracker.StripeKey(d, int(at/chunk.StripeSize)), 1), is) {
				share += min(chunk.StripeSize, size-at)
			}
		}
		all = all && share > before && slices.ContainsFunc(view.Keepers(string(d), tracker.Copies), is)
	}
	return share, all
}

// known returns what a member makes of another.
func (m *member) known(id tracker.ID) p2p.PeerStatus {
	for _, s := range m.Status().Cluster.Members {
		if s.ID == id {
			return s
		}
	}
	return p2p.PeerStatus{State: "unknown"}
}

// readAll reads the layers through members, at once. A response may be broken off: what
// has been sent of it cannot be taken back.
func (c *cluster) readAll(img *image, members ...*member) {
	var all sync.WaitGroup
	for _, m := range members {
		for _, d := range img.order[1:] {
			all.Go(func() {
				if a := m.get(img.path(d)); a.err == nil && digest.FromBytes(a.body) != d {
					c.Errorf("wrong bytes came to a clean end: status %d", a.status)
				}
			})
		}
	}
	all.Wait()
}

// findsOut checks that all hold a hostile member to be in a state, if need be after they
// had another reason to ask it, and hold nothing against anybody else.
func (c *cluster) findsOut(h *hostile.Member, state string) {
	c.Helper()
	if h.Asked() == 0 && state == "up" {
		c.Error("the hostile member was not asked")
	}
	for i, m := range c.members {
		more := byte(100)
		eventually(c.T, fmt.Sprintf("node %d takes the hostile member to be %s", i+1, state), func() bool {
			if m.known(h.ID()).State == state {
				return true
			}
			more++
			c.readAll(c.registry.push("app", fmt.Sprint("more", i, "-", more), random(5<<20+i, more)), m)
			return false
		})
		c.judges(m, h)
	}
}

// judges checks what a member holds against others: what is the hostile one's fault,
// and nothing else.
func (c *cluster) judges(m *member, h *hostile.Member) {
	c.Helper()
	s := m.known(h.ID())
	if blamed := s.Strikes > 0 && s.Fault != ""; blamed != (s.State == "quarantined") {
		c.Errorf("the hostile member is %s, %d times at fault: %q", s.State, s.Strikes, s.Fault)
	}
	for _, s := range m.Status().Cluster.Members {
		silent := s.State != "up" && s.State != "self" && !slow
		if s.ID != h.ID() && (s.Strikes > 0 || silent) {
			c.Errorf("a bystander is %s: %s", s.State, s.Fault)
		}
	}
	if strings.Contains(m.log.String(), "store fault") {
		c.Error("what a member does is taken for a fault of the store")
	}
}
