package gossip

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

func blobs(n int) (blobs []digest.Digest) {
	for i := range n {
		blobs = append(blobs, digest.FromString(fmt.Sprint("blob ", i)))
	}
	return blobs
}

// waitKept waits until exactly the keepers of the blobs know that id holds them.
func waitKept(t *testing.T, nodes []*node, blobs []digest.Digest, id tracker.ID) {
	t.Helper()
	for _, d := range blobs {
		keepers := nodes[0].View().Keepers(string(d), tracker.Copies)
		for _, n := range nodes {
			keeps := slices.ContainsFunc(keepers, func(p tracker.Peer) bool { return p.ID == n.id })
			if keeps {
				eventually(t, fmt.Sprintf("%s keeps %s", n.id, d), func() bool { return slices.Equal(n.providers.Of(d), []tracker.ID{id}) })
			} else if got := n.providers.Of(d); len(got) > 0 {
				t.Errorf("%s is no keeper, and has %v", n.id, got)
			}
		}
	}
}

func TestACompleteBlobIsKnownToItsKeepers(t *testing.T) {
	nodes := cluster(t, 5)
	held := blobs(30)
	for _, n := range nodes {
		eventually(t, "it has settled", func() bool {
			n.announcer.mu.Lock()
			defer n.announcer.mu.Unlock()
			return len(n.announcer.placed.members) == 4
		})
	}
	for _, d := range held {
		nodes[1].Announce(d)
	}
	waitKept(t, nodes, held, nodes[1].id)
	nodes[1].Announce("sha256:nonsense")
	for _, d := range held[:10] {
		nodes[1].Withdraw(d)
	}
	for _, d := range held[:10] {
		for _, n := range nodes {
			eventually(t, fmt.Sprintf("%s is withdrawn at %s", d, n.id), func() bool { return len(n.providers.Of(d)) == 0 })
		}
	}
	waitKept(t, nodes, held[10:], nodes[1].id)
}

func TestNewKeepersAreToldWhenOneLeaves(t *testing.T) {
	nodes := cluster(t, 5)
	held := blobs(30)
	for _, d := range held {
		nodes[0].Announce(d)
	}
	if err := nodes[4].Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitMeet(t, nodes[:4]...)
	for _, d := range held {
		for _, p := range nodes[0].View().Keepers(string(d), tracker.Copies) {
			i := slices.IndexFunc(nodes, func(n *node) bool { return n.id == p.ID })
			eventually(t, fmt.Sprintf("%s keeps %s", p.ID, d), func() bool { return len(nodes[i].providers.Of(d)) == 1 })
		}
	}
}

func TestWhatIsHeldIsToldAfterJoining(t *testing.T) {
	a := run(t, "a")
	held := blobs(3)
	for _, d := range held {
		a.Announce(d)
	}
	if got := a.providers.Of(held[0]); !slices.Equal(got, []tracker.ID{"a"}) {
		t.Errorf("alone, it has %v", got)
	}
	b := run(t, "b", join(a.Addr()))
	waitMeet(t, a, b)
	waitKept(t, []*node{a, b}, held, "a")
}

func TestAKeeperThatWasKilledIsToldAgain(t *testing.T) {
	nodes := cluster(t, 2)
	held := blobs(3)
	for _, d := range held {
		nodes[0].Announce(d)
	}
	waitKept(t, nodes, held, nodes[0].id)
	nodes[1].crash()
	nodes[1] = run(t, nodes[1].id, join(nodes[0].Addr()))
	waitKept(t, nodes, held, nodes[0].id)
}

// outbox is what an announcer sends.
type outbox struct {
	fail error
	sent []message
}

func (o *outbox) send(_ member, p []byte) error {
	if o.fail != nil {
		return o.fail
	}
	m, err := decode(p)
	o.sent = append(o.sent, m)
	return err
}

// state is one with the peers "self", "b" and those given.
func state(ids ...tracker.ID) *placement {
	s := &placement{members: make(map[tracker.ID]member)}
	var peers []tracker.Peer
	for _, id := range ids {
		p := tracker.Peer{ID: id, Weight: 1}
		peers, s.members[id] = append(peers, p), member{peer: p}
	}
	s.view = tracker.NewView(tracker.Peer{ID: "self", Weight: 1}, peers)
	return s
}

func (a *announcer) flush() {
	for _, d := range a.take() {
		_ = a.deliver(d)
		a.done(d.to.peer.ID)
	}
}

func TestWhatCouldNotBeSentIsSentLater(t *testing.T) {
	o := &outbox{fail: errors.New("no route")}
	a := newAnnouncer("self", tracker.NewProviders(10, 1), state("b"), o.send)
	held := blobs(3)
	for _, d := range held {
		a.announce(d)
	}
	a.flush()
	o.fail = nil
	a.withdraw(held[0])
	a.flush()
	a.flush()
	if len(o.sent) != 2 || o.sent[0].hold || !slices.Equal(o.sent[0].blobs, held[:1]) || !o.sent[1].hold || len(o.sent[1].blobs) != 2 {
		t.Errorf("sent are %+v", o.sent)
	}
}

func TestNewsDoNotOvertakeEachOther(t *testing.T) {
	o := &outbox{}
	a := newAnnouncer("self", tracker.NewProviders(10, 1), state("b"), o.send)
	a.announce(blobs(1)[0])
	first := a.take()
	a.withdraw(blobs(1)[0])
	if got := a.take(); len(got) != 0 {
		t.Errorf("while the first are on the way, %+v are sent", got)
	}
	_ = a.deliver(first[0])
	a.done("b")
	a.flush()
	if len(o.sent) != 2 || !o.sent[0].hold || o.sent[1].hold {
		t.Errorf("sent are %+v", o.sent)
	}
}

func TestOnlyNewKeepersAreTold(t *testing.T) {
	o := &outbox{}
	a := newAnnouncer("self", tracker.NewProviders(10, 1), state("b"), o.send)
	a.announce(blobs(1)[0])
	a.flush()
	a.place(state("b", "c"))
	taken := a.take()
	if len(taken) != 1 || taken[0].to.peer.ID != "c" {
		t.Errorf("told are %+v", taken)
	}
	a.done("c")
	a.refresh()
	if taken = a.take(); len(taken) != 2 {
		t.Errorf("at a refresh, told are %+v", taken)
	}
}

func TestWhoIsNoMemberIsToldNothing(t *testing.T) {
	o := &outbox{}
	a := newAnnouncer("self", tracker.NewProviders(10, 1), state("b"), o.send)
	a.announce(blobs(1)[0])
	a.place(state())
	if taken := a.take(); len(taken) != 0 || len(a.pending) != 0 {
		t.Errorf("told are %+v, pending %v", taken, a.pending)
	}
}

func TestWhatWasNotedAloneIsWithdrawn(t *testing.T) {
	providers := tracker.NewProviders(1000, time.Hour)
	a := newAnnouncer("self", providers, state(), (&outbox{}).send)
	held := blobs(100)
	for _, d := range held {
		a.announce(d)
	}
	a.place(state("b", "c", "d", "e", "f"))
	for _, d := range held {
		a.withdraw(d)
		if got := providers.Of(d); len(got) > 0 {
			t.Fatalf("%s is at %v", d, got)
		}
	}
}
