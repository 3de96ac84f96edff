package libp2p

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

func TestAStrangerGetsNoStream(t *testing.T) {
	stranger, b := newNode(t), newNode(t)
	stranger.knows(b)
	b.Handle(func(tracker.ID, p2p.Stream) { t.Error("the stranger got a stream") })
	if s, err := stranger.Open(t.Context(), b.self); err == nil {
		s.Close()
		t.Error("the stranger opened a stream")
	}
	if n := b.connections(stranger.self.ID); n != 0 {
		t.Errorf("%d connections with the stranger", n)
	}
}

func TestManyStrangersKeepNoMemberOut(t *testing.T) {
	stranger, a, b := newNode(t), newNode(t), newNode(t)
	introduce(a, b)
	stranger.knows(b)
	atOnce := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for range maxHandshakes + 10 {
		atOnce <- struct{}{}
		wg.Go(func() {
			if s, err := stranger.Open(t.Context(), b.self); err == nil {
				s.Close()
				t.Error("the stranger opened a stream")
			}
			<-atOnce
		})
	}
	wg.Wait()
	checkEcho(t, open(t, a, b.self), "hello")
}

func TestAMemberMayReconnectOften(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	for range maxPerMember + 10 {
		checkEcho(t, open(t, a, b.self), "hello")
		closeAll(a.connected()[b.self.ID])
		waitFor(t, func() bool { return a.connections(b.self.ID) == 0 && b.connections(a.self.ID) == 0 })
	}
}

func TestAStrangerIsNotDialed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var dials atomic.Int32
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
			dials.Add(1)
		}
	}()
	a := newNode(t)
	stranger := tracker.Peer{ID: newIdentity(t).ID(), Addrs: []string{multiaddr(t, l.Addr())}}
	if _, err := a.Open(t.Context(), stranger); !errors.Is(err, ErrNotMember) {
		t.Errorf("Open: %v, want ErrNotMember", err)
	}
	time.Sleep(20 * time.Millisecond)
	if n := dials.Load(); n != 0 {
		t.Errorf("dialled %d times", n)
	}
}

func multiaddr(t *testing.T, a net.Addr) string {
	t.Helper()
	m, err := manet.FromNetAddr(a)
	if err != nil {
		t.Fatal(err)
	}
	return m.String()
}

func TestAPeerThatStaysAwayIsCutOff(t *testing.T) {
	a := newNode(t)
	b := nodeOf(t, newIdentity(t), func(c *Config) { c.Grace = 100 * time.Millisecond })
	introduce(a, b)
	s := open(t, a, b.self)
	checkEcho(t, s, "hello")
	b.knows()
	if _, err := a.Open(t.Context(), b.self); err == nil {
		t.Error("a peer that left opened a stream")
	}
	checkEnds(t, s)
}

func TestAPeerThatIsMissedForAMomentKeepsItsStreams(t *testing.T) {
	a := newNode(t)
	b := nodeOf(t, newIdentity(t), func(c *Config) { c.Grace = time.Second })
	introduce(a, b)
	s := open(t, a, b.self)
	b.knows()
	time.Sleep(50 * time.Millisecond)
	b.knows(a)
	time.Sleep(1100 * time.Millisecond)
	checkEcho(t, s, "hello")
	b.knows()
	time.Sleep(100 * time.Millisecond) // less than the grace period, which began anew
	checkEcho(t, s, "hello again")
}
