package site

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/granary-oci/granary/p2p/libp2p"
)

const (
	overTCP  = "/ip4/127.0.0.1/tcp/0"
	overQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
	echoed   = "/echo/1"
)

// newHost starts one that echoes what it is sent, also through relays.
func newHost(t testing.TB, set func(*Config), listen ...string) *Host {
	t.Helper()
	i, err := libp2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Identity: i}
	for _, a := range listen {
		cfg.Listen = append(cfg.Listen, ma.StringCast(a))
	}
	if set != nil {
		set(&cfg)
	}
	h, err := NewHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if want := string(i.ID()); h.ID().String() != want {
		t.Errorf("its ID is %s, and not %s", h.ID(), want)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	h.SetStreamHandler(echoed, func(s network.Stream) {
		defer s.Close()
		_, _ = io.Copy(s, s)
	})
	return h
}

func hub(t testing.TB) *Host {
	return newHost(t, func(c *Config) { c.RelayService = true }, overTCP, overQUIC)
}

func infoOf(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// echo sends a few bytes and returns the connection that they came back on.
func echo(ctx context.Context, from *Host, to peer.AddrInfo) (network.Conn, error) {
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "test"), 10*time.Second)
	defer cancel()
	if err := from.Connect(ctx, to); err != nil {
		return nil, err
	}
	s, err := from.NewStream(ctx, to.ID, echoed)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.Write([]byte("hello")); err != nil {
		return nil, err
	}
	if err := s.CloseWrite(); err != nil {
		return nil, err
	}
	if p, err := io.ReadAll(s); err != nil || string(p) != "hello" {
		return nil, io.ErrUnexpectedEOF
	}
	return s.Conn(), nil
}

func TestSitesMeetOnTCPAndQUIC(t *testing.T) {
	for _, listen := range []string{overTCP, overQUIC} {
		a, b := newHost(t, nil, listen), newHost(t, nil)
		if _, err := echo(t.Context(), b, infoOf(a)); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
	}
}

func TestWhatIsAdvertisedIsSaidFirst(t *testing.T) {
	forwarded := ma.StringCast("/ip4/127.0.0.1/tcp/1")
	a := newHost(t, func(c *Config) { c.Advertise = []ma.Multiaddr{forwarded} }, overTCP)
	b := newHost(t, nil)
	if addrs := a.Addrs(); len(addrs) != 2 || !addrs[0].Equal(forwarded) {
		t.Errorf("its addresses are %v", addrs)
	}
	if _, err := echo(t.Context(), b, infoOf(a)); err != nil {
		t.Error(err)
	}
	if said := b.Peerstore().Addrs(a.ID()); !slices.ContainsFunc(said, forwarded.Equal) {
		t.Errorf("others know of %v", said)
	}
}

func TestWhoIsNotAllowedIsNotMet(t *testing.T) {
	stranger := newHost(t, nil, overTCP, overQUIC)
	friend := newHost(t, nil, overTCP)
	a := newHost(t, func(c *Config) { c.Allow = func(id peer.ID) bool { return id == friend.ID() } }, overTCP, overQUIC)
	if _, err := echo(t.Context(), friend, infoOf(a)); err != nil {
		t.Error(err)
	}
	for _, addr := range a.Addrs() {
		if _, err := echo(t.Context(), stranger, peer.AddrInfo{ID: a.ID(), Addrs: []ma.Multiaddr{addr}}); err == nil {
			t.Errorf("a stranger is let in at %s", addr)
		}
	}
	if _, err := echo(t.Context(), a, infoOf(stranger)); err == nil {
		t.Error("a stranger is dialled")
	}
}

// reachedThrough waits until a site says that it is reached through a hub.
func reachedThrough(t *testing.T, edge *Host, hub peer.ID) peer.AddrInfo {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		info := infoOf(edge)
		info.Addrs = slices.DeleteFunc(info.Addrs, func(a ma.Multiaddr) bool { return !strings.HasSuffix(a.String(), hub.String()+"/p2p-circuit") })
		if len(info.Addrs) > 0 {
			return info
		}
	}
	t.Fatalf("its addresses are %v", edge.Addrs())
	return peer.AddrInfo{}
}

func TestSitesThatCannotBeDialledMeetThroughAHub(t *testing.T) {
	h := hub(t)
	a := newHost(t, nil)
	b := newHost(t, func(c *Config) { c.Relays = []peer.AddrInfo{infoOf(h)} })
	to := reachedThrough(t, b, h.ID())
	c, err := echo(t.Context(), a, to)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Stat().Limited || !strings.Contains(c.RemoteMultiaddr().String(), "/p2p-circuit") {
		t.Errorf("the connection is %v to %s", c.Stat(), c.RemoteMultiaddr())
	}
	// What does not ask for a limited connection does not get one.
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if s, err := a.NewStream(short, b.ID(), echoed); err == nil {
		s.Reset()
		t.Error("a stream is opened through the hub that nobody has asked for")
	}
}

// Who knows a hub is not thereby known to all that it lets in.
func TestTheGateHoldsThroughAHub(t *testing.T) {
	h := hub(t)
	a := newHost(t, nil)
	b := newHost(t, func(c *Config) {
		c.Relays = []peer.AddrInfo{infoOf(h)}
		c.Allow = func(id peer.ID) bool { return id == h.ID() }
	})
	if _, err := echo(t.Context(), a, reachedThrough(t, b, h.ID())); err == nil {
		t.Error("a stranger comes in through the hub")
	}
}

func TestAPlaceAtAHubIsTakenAgain(t *testing.T) {
	h := hub(t)
	a := newHost(t, nil)
	b := newHost(t, func(c *Config) { c.Relays = []peer.AddrInfo{infoOf(h)} })
	to := reachedThrough(t, b, h.ID())
	if err := h.Network().ClosePeer(b.ID()); err != nil {
		t.Fatal(err)
	}
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if _, err = echo(t.Context(), a, to); err == nil {
			return
		}
	}
	t.Error(err)
}

func TestARelayedConnectionIsBounded(t *testing.T) {
	h := hub(t)
	a := newHost(t, nil)
	b := newHost(t, func(c *Config) { c.Relays = []peer.AddrInfo{infoOf(h)} })
	to := reachedThrough(t, b, h.ID())
	ctx := network.WithAllowLimitedConn(t.Context(), "test")
	if err := a.Connect(ctx, to); err != nil {
		t.Fatal(err)
	}
	s, err := a.NewStream(ctx, to.ID, echoed)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		p := make([]byte, 64<<10)
		for range 4 * RelayBytes / len(p) {
			if _, err := s.Write(p); err != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, s)
	if n > RelayBytes || err == nil {
		t.Errorf("%d bytes come back, %v", n, err)
	}
}

func TestSettingsThatContradictAreRefused(t *testing.T) {
	i, err := libp2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	relays := []peer.AddrInfo{{ID: "hub"}}
	for _, cfg := range []Config{
		{Identity: i, RelayService: true, Relays: relays},
		{Identity: i, Listen: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/1")}},
		{Identity: i, Listen: []ma.Multiaddr{ma.StringCast("/dns/localhost")}},
	} {
		if h, err := NewHost(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
			h.Close()
		}
	}
}

// TestStrangersAreLetInAndNotSoughtOut: a host for strangers answers whoever connects, and connects to
// nobody but those that it is told of, whatever addresses others give as theirs.
func TestStrangersAreLetInAndNotSoughtOut(t *testing.T) {
	stranger, named := newHost(t, nil, overTCP), newHost(t, nil, overTCP)
	h := newHost(t, func(c *Config) {
		c.Strangers = true
		c.Allow = func(id peer.ID) bool { return id == named.ID() }
	}, overTCP, overQUIC)
	for _, a := range h.Addrs() {
		if err := stranger.Connect(t.Context(), peer.AddrInfo{ID: h.ID(), Addrs: []ma.Multiaddr{a}}); err != nil {
			t.Fatalf("a stranger, over %s: %v", a, err)
		}
	}
	s, err := stranger.NewStream(t.Context(), h.ID(), echoed)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Reset()
	if err := stranger.Network().ClosePeer(h.ID()); err != nil {
		t.Fatal(err)
	}
	for h.Network().Connectedness(stranger.ID()) == network.Connected {
		time.Sleep(time.Millisecond)
	}
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: stranger.ID(), Addrs: stranger.Addrs()}); err == nil {
		t.Error("a stranger was dialled")
	}
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: named.ID(), Addrs: named.Addrs()}); err != nil {
		t.Errorf("who is named was not: %v", err)
	}
}
