package libp2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

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
	if testing.Short() {
		t.Skip("takes hundreds of handshakes")
	}
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

func TestAMemberThatRestartsAtAnotherPortIsReachedAtOnce(t *testing.T) {
	a, i := newNode(t), newIdentity(t)
	b := nodeOf(t, i, nil)
	introduce(a, b)
	s := open(t, a, b.self)
	b.Close()
	checkEnds(t, s)
	if _, err := a.Open(t.Context(), b.self); err == nil {
		t.Fatal("opened a stream to a member that is gone")
	}
	b = nodeOf(t, i, nil)
	a.knows(b)
	b.knows(a)
	b.Handle(echo)
	checkEcho(t, open(t, a, b.self), "hello")
}

func TestAMemberThatRestartsAtTheSamePortIsReachedAtOnce(t *testing.T) {
	a, i := newNode(t), newIdentity(t)
	b := nodeOf(t, i, nil)
	introduce(a, b)
	open(t, a, b.self)
	addrs := b.Addrs()
	b.Close()
	for range 3 { // failures that must not hold up what comes after them
		if _, err := a.Open(t.Context(), b.self); err == nil {
			t.Fatal("opened a stream to a member that is gone")
		}
	}
	b = nodeOf(t, i, func(c *Config) { c.Listen = addrs })
	b.knows(a)
	b.Handle(echo)
	checkEcho(t, open(t, a, b.self), "hello")
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

// link forwards TCP connections to a target until it freezes: then those that are
// there carry nothing more, but stay open, as when a host vanished.
type link struct {
	addr   string
	mu     sync.Mutex
	frozen []chan struct{} // of each connection, closed to freeze it
}

func newLink(t *testing.T, target string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	m, err := ma.NewMultiaddr(target)
	if err != nil {
		t.Fatal(err)
	}
	to, err := manet.ToNetAddr(m)
	if err != nil {
		t.Fatal(err)
	}
	k := &link{addr: multiaddr(t, l.Addr())}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to.String())
			if err != nil {
				near.Close()
				continue
			}
			t.Cleanup(func() { near.Close(); far.Close() })
			frozen := make(chan struct{})
			k.mu.Lock()
			k.frozen = append(k.frozen, frozen)
			k.mu.Unlock()
			go forward(near, far, frozen)
			go forward(far, near, frozen)
		}
	}()
	return k
}

func forward(to, from net.Conn, frozen chan struct{}) {
	p := make([]byte, 32<<10)
	for {
		n, err := from.Read(p)
		select {
		case <-frozen:
			return
		default:
		}
		if err != nil {
			to.Close()
			return
		}
		if _, err := to.Write(p[:n]); err != nil {
			return
		}
	}
}

func (k *link) freeze() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.frozen {
		close(f)
	}
	k.frozen = nil
}

func TestASilentConnectionIsReplaced(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	k := newLink(t, b.Addrs()[0])
	to := b.self
	to.Addrs = []string{k.addr}
	s := open(t, a, to)
	checkEcho(t, s, "hello")
	silent := a.newest(to)
	k.freeze()

	hurried, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Open(hurried, to); err == nil {
		t.Fatal("opened a stream on a connection that carries nothing")
	}
	start := time.Now()
	checkEcho(t, open(t, a, to), "hello")
	if took := time.Since(start); took > openTime {
		t.Errorf("took %v", took)
	}
	if a.newest(to) == silent {
		t.Error("the silent connection is asked again")
	}
	s.Close() // the last stream of the silent connection
	waitFor(t, func() bool { return a.connections(b.self.ID) == 1 })
}

func TestAConnectionToAnAddressThatAMemberLeftIsNotUsed(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	to := b.self
	to.Addrs = []string{newLink(t, b.Addrs()[0]).addr}
	checkEcho(t, open(t, a, to), "hello")
	if a.newest(b.self) != nil {
		t.Error("the connection to the old address is used")
	}
	checkEcho(t, open(t, a, b.self), "hello")
}

func waitFor(t *testing.T, what func() bool) {
	t.Helper()
	for range 500 {
		if what() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it did not happen")
}

func TestEndedConnectionsAreForgotten(t *testing.T) {
	a, b := newNode(t), newNode(t)
	introduce(a, b)
	open(t, a, b.self)
	if !slices.Contains(b.Addrs(), a.connected()[b.self.ID][0].dialed) {
		t.Error("the connection does not know where it leads")
	}
	b.Close()
	waitFor(t, func() bool { return a.connections(b.self.ID) == 0 })
}
