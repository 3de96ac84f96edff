package libp2p

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

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
