package libp2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	tls "github.com/libp2p/go-libp2p/p2p/security/tls"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

var _ p2p.Transport = (*Host)(nil)

// node is a host with a membership that tests change.
type node struct {
	*Host
	members *tracker.Static
	self    tracker.Peer
}

func newIdentity(t testing.TB) *Identity {
	t.Helper()
	i, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// nodeOf starts a node that knows nobody and echoes what it is sent.
func nodeOf(t testing.TB, i *Identity, set func(*Config)) *node {
	t.Helper()
	n := &node{members: tracker.NewStatic(tracker.NewView(tracker.Peer{ID: i.ID()}, nil))}
	cfg := Config{Identity: i, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Members: n.members}
	if set != nil {
		set(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	n.Host, n.self = h, tracker.Peer{ID: i.ID(), Addrs: h.Addrs()}
	return n
}

func newNode(t testing.TB) *node { return nodeOf(t, newIdentity(t), nil) }

func echo(_ tracker.ID, s p2p.Stream) {
	defer s.Close()
	_, _ = io.Copy(struct{ io.Writer }{s}, s)
}

// knows makes the others the only members that n sees.
func (n *node) knows(others ...*node) {
	var peers []tracker.Peer
	for _, o := range others {
		peers = append(peers, o.self)
	}
	n.members.Set(tracker.NewView(n.self, peers))
}

// introduce makes all nodes members to each other, and echo.
func introduce(nodes ...*node) {
	for _, n := range nodes {
		n.knows(nodes...)
		n.Handle(echo)
	}
}

func open(t testing.TB, from *node, to tracker.Peer) p2p.Stream {
	t.Helper()
	s, err := from.Open(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func checkEcho(t testing.TB, s p2p.Stream, say string) {
	t.Helper()
	if err := tryEcho(s, say); err != nil {
		t.Fatal(err)
	}
}

func tryEcho(s p2p.Stream, say string) error {
	if _, err := io.WriteString(s, say); err != nil {
		return err
	}
	got := make([]byte, len(say))
	if _, err := io.ReadFull(s, got); err != nil {
		return err
	}
	if string(got) != say {
		return fmt.Errorf("got %q of %q", got, say)
	}
	return nil
}

// checkEnds checks that a read of s fails soon.
func checkEnds(t *testing.T, s p2p.Stream) {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := s.Read(make([]byte, 1))
	if err == nil || strings.Contains(err.Error(), "timeout") || strings.Contains(err.Error(), "deadline") {
		t.Fatalf("stream did not end: %v", err)
	}
}

func (n *node) connections(id tracker.ID) int { return len(n.connected()[id]) }

func TestAStreamCarriesBytesBothWays(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a)
	a.knows(b)
	b.knows(a)
	from := make(chan tracker.ID, 1)
	b.Handle(func(id tracker.ID, s p2p.Stream) { from <- id; echo(id, s) })
	s := open(t, a, b.self)
	checkEcho(t, s, strings.Repeat("granary", 100_000/7))
	if id := <-from; id != a.self.ID {
		t.Errorf("stream came from %s, want %s", id, a.self.ID)
	}
	if got := a.connected()[b.self.ID][0].ConnState().Security; got != tls.ID {
		t.Errorf("security is %s, want TLS", got)
	}
	checkEcho(t, open(t, b, a.self), "back on the same connection")
	if n := b.connections(a.self.ID); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestAStreamThatArrivesBeforeHandleWaitsForIt(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.knows(b)
	b.knows(a)
	time.AfterFunc(100*time.Millisecond, func() { b.Handle(echo) })
	checkEcho(t, open(t, a, b.self), "hello")
}

func TestCloseEndsBothSidesAtOnce(t *testing.T) {
	a, b := newNode(t), newNode(t)
	a.knows(b)
	b.knows(a)
	streams := make(chan p2p.Stream, 1)
	b.Handle(func(_ tracker.ID, s p2p.Stream) { streams <- s })
	s := open(t, a, b.self)
	ended := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		ended <- err
	}()
	s.Close()
	if err := <-ended; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read on the closing side: %v, want an error", err)
	}
	far := <-streams
	defer far.Close()
	checkEnds(t, far)
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestBothOpenAtOnce(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	var wg sync.WaitGroup
	for range 8 {
		for _, pair := range [][2]*node{{a, b}, {b, a}} {
			wg.Go(func() {
				s, err := pair[0].Open(t.Context(), pair[1].self)
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				if err := tryEcho(s, "hello"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if n := a.connections(b.self.ID); n < 1 || n > 2 {
		t.Errorf("%d connections, want one from each side at most", n)
	}
}

func TestManyMembersWithManyStreams(t *testing.T) {
	members, lanes := 100, 8
	if testing.Short() {
		members = 20
	}
	hub := newNode(t)
	others := make([]*node, members)
	for i := range others {
		others[i] = newNode(t)
		others[i].knows(hub)
		others[i].Handle(echo)
	}
	hub.knows(others...)
	hub.Handle(echo)
	var wg sync.WaitGroup
	use := func(from *node, to tracker.Peer) {
		for range lanes {
			s, err := from.Open(t.Context(), to)
			if err == nil {
				t.Cleanup(func() { s.Close() })
				err = tryEcho(s, "hello")
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	atOnce := make(chan struct{}, 8) // so that slow machines dial in time
	for _, o := range others {
		wg.Go(func() {
			atOnce <- struct{}{}
			use(o, hub.self)
			use(hub, o.self)
			<-atOnce
		})
	}
	wg.Wait()
}

func TestAnotherIdentityAtTheAddressIsAnError(t *testing.T) {
	a, b := newNode(t), newNode(t)
	gone := &node{self: tracker.Peer{ID: newIdentity(t).ID(), Addrs: b.Addrs()}}
	introduce(b)
	a.knows(b, gone)
	b.knows(a, gone)
	_, err := a.Open(t.Context(), gone.self)
	if err == nil || !strings.Contains(err.Error(), "peer id mismatch") {
		t.Errorf("Open: %v, want a mismatch", err)
	}
}

func TestOneAddressOfManyIsEnough(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	to := b.self
	to.Addrs = append([]string{"/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/5052/quic-v1", "/ip4/0.0.0.0/tcp/5052", "nonsense"}, b.self.Addrs...)
	checkEcho(t, open(t, a, to), "hello")
}

func TestAddressesThatAreNotTCPAreNotDialed(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	for _, addr := range []string{"", "/ip4/127.0.0.1/udp/5052/quic-v1", "/ip4/127.0.0.1/tcp/5052/ws", "/unix/tmp/s"} {
		to := b.self
		to.Addrs = []string{addr}
		if _, err := a.Open(t.Context(), to); err == nil {
			t.Errorf("%q was dialled", addr)
		}
	}
}

func TestANameIsDialed(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	to := b.self
	to.Addrs = []string{strings.Replace(b.Addrs()[0], "/ip4/127.0.0.1", "/dns4/localhost", 1)}
	checkEcho(t, open(t, a, to), "hello")
}

func TestANodeDoesNotOpenToItself(t *testing.T) {
	a := newNode(t)
	if _, err := a.Open(t.Context(), a.self); err == nil {
		t.Error("opened a stream to itself")
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // which accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := newNode(t)
	mute := &node{self: tracker.Peer{ID: newIdentity(t).ID(), Addrs: []string{multiaddr(t, l.Addr())}}}
	a.knows(mute)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := a.Open(ctx, mute.self); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open: %v", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("Open took %v", took)
	}
	if _, err := a.Open(t.Context(), mute.self); err == nil {
		t.Error("opened a stream to who says nothing")
	}
	if took := time.Since(start); took > 2*openTime {
		t.Errorf("Open without a deadline took %v", took)
	}
}

func TestAfterCloseNothingOpens(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	s := open(t, a, b.self)
	a.Close()
	checkEnds(t, s)
	if _, err := a.Open(t.Context(), b.self); err == nil {
		t.Error("opened a stream on a closed host")
	}
	if err := a.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestListenErrorsNameTheAddress(t *testing.T) {
	taken := newNode(t).Addrs()[0]
	for _, addr := range []string{taken, "/ip4/127.0.0.1/udp/0/quic-v1", "127.0.0.1:5052"} {
		_, err := New(Config{Identity: newIdentity(t), Listen: []string{addr}, Members: tracker.NewStatic(nil)})
		if err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("listen on %s: %v", addr, err)
		}
	}
}

func TestAnUnspecifiedAddressStaysUnspecified(t *testing.T) {
	n := nodeOf(t, newIdentity(t), func(c *Config) { c.Listen = []string{"/ip4/0.0.0.0/tcp/0"} })
	addrs := n.Addrs()
	if len(addrs) != 1 || !strings.HasPrefix(addrs[0], "/ip4/0.0.0.0/tcp/") || strings.HasSuffix(addrs[0], "/tcp/0") {
		t.Errorf("listens on %q", addrs)
	}
}
