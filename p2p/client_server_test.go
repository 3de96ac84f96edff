package p2p_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/p2ptest"
	"github.com/granary-oci/granary/tracker"
)

func TestABlobThatAllReadAtOnceLeavesTheUpstreamOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c", "d")
		m := c.blob(18<<20 + 5)
		var wg sync.WaitGroup
		for id, n := range c.nodes {
			wg.Go(func() {
				if err := c.get(t.Context(), n.read, m); err != nil {
					t.Errorf("node %s: %v", id, err)
				}
			})
		}
		wg.Wait()
		if sent := c.registry.bytes(); sent != m.Size() {
			t.Errorf("%d bytes left the upstream, the blob has %d", sent, m.Size())
		}
	})
}

func TestABlobOfOneChunkNeedsNoClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		m := c.blob(1000, "b")
		c.mustGet("a", m)
		if n := c.nodes["b"].fetches(); n != 1 {
			t.Errorf("its owner fetched %d times, want once", n)
		}
	})
}

func TestWhoWaitsForTheUpstreamIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c")
		m := c.blob(4<<20, "b")
		goOn := c.registry.stall()
		time.AfterFunc(30*time.Second, goOn)
		if took := c.mustGet("a", m); took < 30*time.Second || took > 31*time.Second {
			t.Errorf("30 s of waiting took %v", took)
		}
		if sent := c.registry.bytes(); sent != m.Size() {
			t.Errorf("%d bytes left the upstream, the blob has %d", sent, m.Size())
		}
	})
}

func TestAThinLinkIsWaitedForAsLongAsAnythingComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		c.registry.link = linkOf(64 << 10)
		var wg sync.WaitGroup
		var all int64
		for range 6 { // of which the last begins to come when the patience is over
			m := c.blob(1<<20+1, "b")
			all += m.Size()
			wg.Go(func() {
				if err := c.get(t.Context(), c.nodes["a"].read, m); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if sent := c.registry.bytes(); sent != all {
			t.Errorf("%d bytes left the upstream, the blobs have %d", sent, all)
		}
	})
}

func TestACrowdIsServedLikeATree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []tracker.ID
		for i := range 40 {
			ids = append(ids, tracker.ID(fmt.Sprintf("n%02d", i)))
		}
		c := newCluster(t, nil, ids...)
		for _, id := range ids {
			c.net.SetLink(id, 100<<20, 100<<20)
		}
		m := c.blob(4<<20, "n00")
		var wg sync.WaitGroup
		for id, n := range c.nodes {
			wg.Go(func() {
				if err := c.get(t.Context(), n.read, m); err != nil {
					t.Errorf("node %s: %v", id, err)
				}
			})
		}
		wg.Wait()
		if sent := c.registry.bytes(); sent != m.Size() {
			t.Errorf("%d bytes left the upstream, the stripe has %d", sent, m.Size())
		}
		if _, out := c.net.Traffic("n00"); out > 20*m.Size() {
			t.Errorf("the owner sent a stripe of %d bytes %.1f times to 39 members", m.Size(), float64(out)/float64(m.Size()))
		}
	})
}

// A stripe takes the time of its chunks on its way through members that pass on each when it comes, and not its own time at
// each of them.
func TestWhatAMemberIsBeingSentItSendsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []tracker.ID{"owner", "a", "b", "c", "d", "e", "f", "g", "h"}
		c := newCluster(t, nil, ids...)
		for _, id := range ids {
			c.net.SetLink(id, 10<<20, 10<<20) // bytes per second
		}
		m := c.blob(4<<20, "owner")
		c.mustGet("owner", m)
		began := time.Now()
		var wg sync.WaitGroup
		for _, id := range ids[1:] {
			wg.Go(func() { c.mustGet(id, m) })
		}
		wg.Wait()
		if took := time.Since(began); took > 1500*time.Millisecond { // 0.8 s for two, and 0.8 again for the next four
			t.Errorf("eight members took %v", took)
		}
	})
}

func TestAnAskerThatLeavesEndsTheOwnersWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		m := c.blob(4<<20, "b")
		defer c.registry.stall()()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.get(ctx, c.nodes["a"].read, m) }()
		time.Sleep(time.Second)
		if n := c.registry.readers(); n != 1 {
			t.Fatalf("%d readers of the upstream, want 1", n)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		time.Sleep(time.Second)
		if n := c.registry.readers(); n != 0 {
			t.Errorf("%d readers of the upstream after the asker has left", n)
		}
		if s := c.nodes["a"].state("b"); s.State != "up" {
			t.Errorf("the owner is %s for having been left", s.State)
		}
	})
}

// TestStripesOfManyMembersAreSmall, and where so many come or go that others own them, what members have is found all the same.
func TestStripesOfManyMembersAreSmall(t *testing.T) {
	for _, before := range []int{35, 36} {
		t.Run(fmt.Sprint("first ", before), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ids []tracker.ID
				for i := range 36 {
					ids = append(ids, tracker.ID(fmt.Sprintf("n%02d", i)))
				}
				c := newCluster(t, nil, ids...)
				m := c.blob(8 << 20)
				see := func(members int) {
					for _, n := range c.nodes {
						n.members.Set(tracker.NewView(n.members.View().Self(), c.peers[:members]))
					}
				}
				pull := func() (fetches int) {
					for _, n := range c.nodes {
						fetches -= n.fetches()
					}
					c.mustGet("n00", m)
					for _, n := range c.nodes {
						fetches += n.fetches()
					}
					return fetches
				}
				see(before)
				if n := pull(); before == 35 && n > 2 || before == 36 && n < 4 {
					t.Errorf("of %d members, owners were asked %d times for 8 chunks", before, n)
				}
				c.nodes["n00"].store.drop()
				sent := c.registry.bytes()
				see(71 - before)
				pull()
				lost := int64(2 << 20) // what the one who has left has, and n00 has dropped
				if before == 35 {
					lost = 4 << 20
				}
				if more := c.registry.bytes() - sent; more > lost {
					t.Errorf("%d bytes left the registry again", more)
				}
			})
		})
	}
}

// TestWhatComesAlongIsPassedOn: a source may give more of a blob than it was asked for.
func TestWhatComesAlongIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		m := c.blob(3<<20, "a")
		var got []int
		err := chunk.GetRun(t.Context(), c.nodes["a"].client.Source(app, generous{c.registry, m}), []chunk.Ref{m.At(0), m.At(1)}, func(ref chunk.Ref, _ []byte) error {
			got = append(got, ref.Index())
			return nil
		})
		if err != nil || !slices.Equal(got, []int{2, 0, 1, 2}) {
			t.Errorf("chunks %v came, error %v", got, err)
		}
	})
}

// generous gives the last chunk of a blob before and after those that it is asked for.
type generous struct {
	chunk.Source
	m *chunk.Map
}

func (g generous) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	last := g.m.At(g.m.Len() - 1)
	return chunk.GetRun(ctx, g.Source, append(append([]chunk.Ref{last}, refs...), last), yield)
}

// TestWhoLeavesIsDoneWith however many stripes were awaited at the time.
func TestWhoLeavesIsDoneWith(t *testing.T) {
	for range 20 { // it was by chance
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, nil, "a", "b")
			m := c.blob(16<<20, "b", "b")
			defer c.registry.stall()()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- c.get(ctx, c.nodes["a"].client.Source(app, c.nodes["a"].own), m) }()
			time.Sleep(time.Second)
			cancel()
			synctest.Wait()
			select {
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("it ended with %v", err)
				}
			default:
				t.Fatal("it waits for ever")
			}
		})
	}
}

func TestChunksAreCompressedOnTheWireIfTheyShrink(t *testing.T) {
	text := []byte(strings.Repeat("the quick brown fox jumps over the lazy dog\n", 100000))
	for _, tt := range []struct {
		name        string
		p           []byte
		least, most int64
	}{
		{"text", text, 0, int64(len(text)) / 10},
		{"noise", content(4<<20, 1), 4 << 20, 4<<20 + 64<<10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "b")
				for !c.owned(c.registry.add(tt.p).Blob(), []tracker.ID{"b", "b"}) {
					tt.p[0]++
				}
				c.mustGet("a", c.registry.add(tt.p))
				if in, _ := c.net.Traffic("a"); in < tt.least || in > tt.most {
					t.Errorf("%d bytes came for %d", in, len(tt.p))
				}
			})
		})
	}
}

func TestAnUpstreamThatTheOwnerCannotReadIsReadByWhoAsks(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
	}{{"denied", chunk.ErrDenied}, {"unreachable", errUnreachable}, {"not found", chunk.ErrNotFound}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "b", "c")
				m := c.blob(4<<20, "b")
				c.nodes["b"].own = failing{tt.err}
				if took := c.mustGet("a", m); took > time.Second {
					t.Errorf("it took %v", took)
				}
				if n := c.nodes["c"].fetches(); n != 0 {
					t.Errorf("the next owner was asked %d times", n)
				}
				if s := c.nodes["a"].state("b"); s.State != "up" {
					t.Errorf("the owner is %s for what the upstream said", s.State)
				}
			})
		})
	}
	t.Run("by anybody", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, nil, "a", "b")
			m := c.blob(4<<20, "b")
			c.registry.fail(chunk.ErrDenied)
			if err := c.get(t.Context(), c.nodes["a"].read, m); !errors.Is(err, chunk.ErrDenied) {
				t.Errorf("it ended with %v, want the upstream's own word", err)
			}
		})
	})
}

type failing struct{ err error }

func (f failing) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, f.err }

func TestWhatAMemberHoldsDoesNotLeaveTheUpstreamAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c", "d", "e")
		m := c.blob(6<<20, "b", "c")
		c.mustGet("d", m)
		c.nodes["d"].prove(m.Blob())
		c.nodes["d"].client.Claims().Of(host).Proven(m.Blob())
		for id, n := range c.nodes {
			n.providers.Announce(m.Blob(), "d")
			if id != "d" {
				n.store.drop()
			}
		}
		time.Sleep(time.Minute)
		before := c.registry.bytes()
		c.mustGet("a", m)
		if sent := c.registry.bytes() - before; sent != 0 {
			t.Errorf("%d bytes left the upstream again", sent)
		}
	})
}

// TestAnOwnerLendsOnWhatAProviderHasHashed: who asks the owner need not ask the provider too.
func TestAnOwnerLendsOnWhatAProviderHasHashed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "d")
		m := c.blob(4<<20, "b")
		c.nodes["d"].hash(m, c.registry.blobs[m.Blob()])
		for _, n := range c.nodes {
			n.providers.Announce(m.Blob(), "d")
		}
		c.mustGet("a", m)
		if got := c.nodes["a"].state("d").Received; got != 0 {
			t.Errorf("%d bytes came from the provider itself", got)
		}
		if got := c.nodes["b"].state("d").Received; got != m.Size() {
			t.Errorf("the owner has %d bytes from the provider", got)
		}
	})
}

func TestAProviderWithoutTheBlobIsStruckOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "d")
		m := c.blob(4<<20, "b")
		for _, n := range c.nodes {
			n.providers.Announce(m.Blob(), "d")
		}
		c.mustGet("a", m)
		if ids := c.nodes["b"].providers.Of(m.Blob()); len(ids) != 0 {
			t.Errorf("the owner still takes %v for providers", ids)
		}
		if s := c.nodes["b"].state("d"); s.State != "up" {
			t.Errorf("a provider is %s for having lost a blob", s.State)
		}
	})
}

func TestStripesThatAreReadAtOnceShareOneLookupOfProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		c.mustGet("a", c.blob(16<<20, "a", "a", "a", "a"))
		if n := c.nodes["b"].mapped(); n != 1 {
			t.Errorf("the keeper was asked %d times for 4 stripes", n)
		}
	})
}

func TestASilentKeeperIsWaitedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		m := c.blob(16<<20, "a", "a", "a", "a")
		c.net.Freeze("b")
		if took := c.mustGet("a", m); took > 600*time.Millisecond {
			t.Errorf("a silent keeper of the providers cost %v", took)
		}
	})
}

func TestADeadMemberCostsTimeOnceAndThenNoneUntilItIsBack(t *testing.T) {
	const enough = 50 * time.Millisecond // for a stripe of anybody who is there
	tests := []struct {
		name         string
		known        bool // lanes are open, and its speed is known
		strike, mend func(n *p2ptest.Network)
	}{
		{"a stranger freezes", false, func(n *p2ptest.Network) { n.Freeze("b") }, func(n *p2ptest.Network) { n.Thaw("b") }},
		{"an acquaintance freezes", true, func(n *p2ptest.Network) { n.Freeze("b") }, func(n *p2ptest.Network) { n.Thaw("b") }},
		{"a stranger is killed", false, func(n *p2ptest.Network) { n.Kill("b") }, func(n *p2ptest.Network) { n.Revive("b") }},
		{"an acquaintance is killed", true, func(n *p2ptest.Network) { n.Kill("b") }, func(n *p2ptest.Network) { n.Revive("b") }},
		{"a stranger is cut off", false, func(n *p2ptest.Network) { n.Cut("a", "b") }, func(n *p2ptest.Network) { n.Heal("a", "b") }},
		{"an acquaintance is cut off", true, func(n *p2ptest.Network) { n.Cut("a", "b") }, func(n *p2ptest.Network) { n.Heal("a", "b") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "b", "c")
				stripe := func() time.Duration { return c.mustGet("a", c.blob(1<<20+1, "b")) }
				for range 10 {
					if tt.known {
						stripe()
					}
				}
				tt.strike(c.net)
				var cost time.Duration
				for range 20 {
					cost += stripe()
				}
				if cost > 2500*time.Millisecond+20*enough {
					t.Errorf("20 stripes of a dead owner cost %v, want 2.5 s at most", cost)
				}
				for range 10 {
					time.Sleep(30 * time.Second)
					if took := stripe(); took > enough {
						t.Errorf("a stripe of an owner that is known to be dead took %v", took)
					}
				}
				tt.mend(c.net)
				time.Sleep(5 * time.Second)
				before := c.nodes["b"].fetches()
				if took := stripe(); took > enough || c.nodes["b"].fetches() == before {
					t.Errorf("it is back, and a stripe took %v after %d requests", took, c.nodes["b"].fetches()-before)
				}
				if s := c.nodes["a"].state("b"); s.State != "up" {
					t.Errorf("it is back, and %s", s.State)
				}
			})
		})
	}
}

func TestAnOwnerThatDiesInTheMidstOfAnAnswerIsReplaced(t *testing.T) {
	strikes := map[string]func(c *cluster){
		"killed":  func(c *cluster) { c.net.Kill("b") },
		"frozen":  func(c *cluster) { c.net.Freeze("b") },
		"cut off": func(c *cluster) { c.net.Cut("a", "b") },
	}
	for name, strike := range strikes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "b", "c")
				c.net.SetLink("b", 1<<20, 0)
				m := c.blob(4<<20, "b")
				time.AfterFunc(2500*time.Millisecond, func() { strike(c) })
				if took := c.mustGet("a", m); took > 5*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestAnOwnerThatIsSlowToSendIsNotHeldForDead(t *testing.T) {
	for name, change := range map[string]func(*p2p.Config){
		"its upload is limited":           func(cfg *p2p.Config) { cfg.Upload = p2p.NewLimiter(128 << 10) },
		"the asker's download is limited": func(cfg *p2p.Config) { cfg.Download = p2p.NewLimiter(128 << 10) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, change, "a", "b", "c")
				m := c.blob(12<<20, "b", "c", "b")
				if took := c.mustGet("a", m); took < 20*time.Second || took > 100*time.Second {
					t.Errorf("12 MiB at 128 KiB a second took %v", took)
				}
				if sent := c.registry.bytes(); sent != m.Size() {
					t.Errorf("%d bytes left the upstream, the blob has %d", sent, m.Size())
				}
				for _, id := range []tracker.ID{"b", "c"} {
					if s := c.nodes["a"].state(id); s.State != "up" {
						t.Errorf("%s is %s", id, s.State)
					}
				}
			})
		})
	}
}

func TestOwnersThatAllWaitForEachOthersHoldersAreServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		var wg sync.WaitGroup
		for i := range 400 { // each owner's work fills all its places, and needs the other as a holder
			owner, holder := tracker.ID("a"), tracker.ID("b")
			if i%2 == 1 {
				owner, holder = holder, owner
			}
			m := c.blob(1000+i, owner)
			c.registry.mu.Lock()
			p := c.registry.blobs[m.Blob()]
			c.registry.mu.Unlock()
			c.nodes[owner].providers.Announce(m.Blob(), holder)
			c.nodes[holder].providers.Announce(m.Blob(), holder)
			c.nodes[holder].store.Put(t.Context(), m.At(0), p)
			// The holder's readers have it; what is asked is the owner.
			wg.Go(func() {
				if err := c.get(t.Context(), c.nodes[holder].client.Source(app, failing{errUnreachable}), m); err != nil {
					t.Error(err)
				}
			})
		}
		began := time.Now()
		wg.Wait()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		if sent := c.registry.bytes(); sent != 0 {
			t.Errorf("%d bytes left the upstream", sent)
		}
	})
}

func TestEachChunkOfAStripedReadSaysWhereItCameFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		m := c.blob(16<<20, "a", "b", "a", "b")
		ctx, origin := chunk.WithOrigin(t.Context())
		err := chunk.GetRun(ctx, c.nodes["a"].client.Source(app, c.nodes["a"].own), refsOf(m), func(ref chunk.Ref, _ []byte) error {
			want := "upstream"
			if ref.Index()/4%2 == 1 {
				want = "peer"
			}
			if got := origin(); got != want {
				t.Errorf("chunk %d came from %q, want %q", ref.Index(), got, want)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestIdleLanesAreClosedAndOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b")
		c.mustGet("a", c.blob(1000, "b"))
		if c.net.Streams() == 0 {
			t.Fatal("no lane is open")
		}
		time.Sleep(5 * time.Minute)
		if n := c.net.Streams(); n != 0 {
			t.Errorf("%d lanes are open after 5 idle minutes", n)
		}
		c.mustGet("a", c.blob(1001, "b"))
	})
}
