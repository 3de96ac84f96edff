package site

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// relayed has datagrams go to a host through a line that can be cut, and returns the host as it is reached
// through the line.
func relayed(t *testing.T, to *Host) (through peer.AddrInfo, cut *atomic.Bool) {
	t.Helper()
	at := addrOf(to.Addrs()[0], to.ID())
	near, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.DialUDP("udp4", nil, at.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	var who atomic.Pointer[net.UDPAddr]
	cut = new(atomic.Bool)
	go func() {
		p := make([]byte, 1<<16)
		for {
			n, from, err := near.ReadFromUDP(p)
			if err != nil {
				return
			}
			who.Store(from)
			if !cut.Load() {
				_, _ = far.Write(p[:n])
			}
		}
	}()
	go func() {
		p := make([]byte, 1<<16)
		for {
			n, err := far.Read(p)
			if err != nil {
				return
			}
			if !cut.Load() {
				_, _ = near.WriteToUDP(p[:n], who.Load())
			}
		}
	}()
	addr, err := manet.FromNetAddr(near.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	return peer.AddrInfo{ID: to.ID(), Addrs: []ma.Multiaddr{addr.Encapsulate(ma.StringCast("/quic-v1"))}}, cut
}

// TestADeadLineIsNoticed: who waits for something on a line that has died is told so, long before QUIC
// itself gives up (30 s), and is connected again when the line is back, without being told before.
func TestADeadLineIsNoticed(t *testing.T) {
	hub, edge := newHost(t, nil, overQUIC), newHost(t, nil)
	l := Listen(hub, func(peer.ID, Hello) Hello { return Hello{1} })
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	to, cut := relayed(t, hub)
	c, err := Dial(t.Context(), edge, to, Hello{}, func(Hello) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello(t, c)
	cut.Store(true)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Fatalf("a read from a dead line ends with %v", err)
	}
	time.AfterFunc(time.Second, func() { cut.Store(false) })
	again, err := Dial(t.Context(), edge, to, Hello{}, func(Hello) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	hello(t, again)
}

// TestAQuietLineIsLeftAlone: nothing has to be said on a line that lives, by a site that knows of no signs of life.
func TestAQuietLineIsLeftAlone(t *testing.T) {
	hub, edge := newHost(t, nil, overTCP), newHost(t, nil)
	hub.RemoveStreamHandler("/ipfs/ping/1.0.0")
	l := Listen(hub, func(peer.ID, Hello) Hello { return Hello{1} })
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
		}
	}()
	c, err := Dial(t.Context(), edge, infoOf(hub), Hello{}, func(Hello) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello(t, c)
	_ = c.SetReadDeadline(time.Now().Add(2*quiet + answerWithin))
	if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("a read from a quiet line ends with %v", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	hello(t, c)
}

// hello sends something and waits until it comes back.
func hello(t *testing.T, c net.Conn) {
	t.Helper()
	p := []byte("hello")
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, p); err != nil || string(p) != "hello" {
		t.Fatalf("%q comes back, %v", p, err)
	}
}
