package dht

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/p2p/libp2p"
	p2psite "github.com/granary-oci/granary/p2p/site"
	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/trackertest"
)

var _ tracker.Tracker = (*Tracker)(nil)

// brisk is for tests.
var brisk = pace{gather: 10 * time.Millisecond, retry: 50 * time.Millisecond, look: 500 * time.Millisecond}

// counted are the messages that all sites of a test have got.
type counted struct {
	mu    sync.Mutex
	count map[pb.Message_MessageType]int
	bytes int
}

func (c *counted) received(m *pb.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil {
		c.count = make(map[pb.Message_MessageType]int)
	}
	c.count[m.Type]++
	c.bytes += len(m.Key)
	for _, p := range m.ProviderPeers {
		c.bytes += len(p.Id)
		for _, a := range p.Addrs {
			c.bytes += len(a)
		}
	}
}

func (c *counted) take() (count map[pb.Message_MessageType]int, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	count, bytes = c.count, c.bytes
	c.count, c.bytes = nil, 0
	return count, bytes
}

func newHost(t testing.TB, listen ...string) *p2psite.Host {
	t.Helper()
	return newHostWith(t, p2psite.Config{}, listen...)
}

func newHostWith(t testing.TB, cfg p2psite.Config, listen ...string) *p2psite.Host {
	t.Helper()
	i, err := libp2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Identity = i
	for _, a := range listen {
		cfg.Listen = append(cfg.Listen, ma.StringCast(a))
	}
	h, err := p2psite.NewHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

const loopback = "/ip4/127.0.0.1/tcp/0"

type node struct {
	*Tracker
	host *p2psite.Host
	seen *counted
}

func (n *node) info() peer.AddrInfo { return peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Addrs()} }
func (n *node) id() tracker.ID      { return tracker.ID(n.host.ID().String()) }

// newNode starts a site that others can dial, and that knows these.
func newNode(t testing.TB, set func(*Config), knows ...*node) *node {
	t.Helper()
	cfg := Config{Network: "test", Mode: Server, Rate: 1e6, Loopback: true}
	for _, k := range knows {
		cfg.Bootstrap = append(cfg.Bootstrap, k.info())
	}
	if set != nil {
		set(&cfg)
	}
	n := &node{host: newHost(t, loopback), seen: &counted{}}
	if len(knows) > 0 {
		n.seen = knows[0].seen
	}
	var err error
	if n.Tracker, err = start(t.Context(), n.host, cfg, brisk, n.seen.received); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// meet starts sites that know the first, and waits until they know each other.
func meet(t testing.TB, n int) []*node {
	t.Helper()
	nodes := []*node{newNode(t, nil)}
	for range n - 1 {
		nodes = append(nodes, newNode(t, nil, nodes[0]))
	}
	for _, a := range nodes {
		eventually(t, "it knows others", func() bool {
			if a.dht.RoutingTable().Size() >= min(n-1, nearest) {
				return true
			}
			<-a.dht.RefreshRoutingTable()
			return false
		})
	}
	return nodes
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("in 30 seconds not: ", what)
}

func blobs(n int) (blobs []digest.Digest) {
	for i := range n {
		blobs = append(blobs, digest.FromString(fmt.Sprint("blob ", i)))
	}
	return blobs
}

func TestTracker(t *testing.T) {
	trackertest.Test(t, func(t *testing.T, n int) (all []trackertest.Node) {
		for _, n := range meet(t, n) {
			all = append(all, trackertest.Node{Tracker: n.Tracker, ID: n.id(), Leave: n.Leave})
		}
		return all
	})
}

func (n *node) finds(t testing.TB, d digest.Digest, want ...*node) bool {
	t.Helper()
	peers, err := n.Providers(t.Context(), d, 8)
	var got, ids []tracker.ID
	for _, p := range peers {
		got = append(got, p.ID)
	}
	for _, w := range want {
		ids = append(ids, w.id())
	}
	slices.Sort(got)
	slices.Sort(ids)
	return err == nil && slices.Equal(got, ids)
}

// A thousand blobs must not cost a thousand lookups, nor be told to everybody.
func TestAThousandBlobsAreToldWithFewMessages(t *testing.T) {
	nodes := meet(t, 20)
	eventually(t, "they are done with meeting", func() bool {
		nodes[0].seen.take()
		time.Sleep(time.Second)
		count, _ := nodes[0].seen.take()
		return len(count) == 0
	})
	held := blobs(1000)
	for _, d := range held {
		nodes[7].Announce(d)
	}
	eventually(t, "all are told", func() bool { return nodes[7].announcer.settled() })
	eventually(t, "the last is found", func() bool { return nodes[13].finds(t, held[999], nodes[7]) })
	told, bytes := nodes[0].seen.take()
	t.Logf("%d blobs among %d sites take %v messages, of %d bytes in all", len(held), len(nodes), told, bytes)
	if n := told[pb.Message_ADD_PROVIDER]; n > copies*len(held) {
		t.Errorf("%d records are sent of %d blobs", n, len(held))
	}
	if n := told[pb.Message_FIND_NODE]; n > len(held)/2 {
		t.Errorf("%d questions are asked for %d blobs", n, len(held))
	}
	for i := range 50 {
		if d := held[i*20]; !nodes[i%7].finds(t, d, nodes[7]) {
			t.Errorf("%s is not found", d)
		}
	}
	found, _ := nodes[0].seen.take()
	t.Logf("50 that somebody has are found with %v messages", found)
	for i := range 50 {
		if peers, err := nodes[0].Providers(t.Context(), digest.FromString(fmt.Sprint("nothing ", i)), 3); len(peers) > 0 || err != nil {
			t.Errorf("what nobody has is found at %v, %v", peers, err)
		}
	}
	missed, _ := nodes[0].seen.take()
	t.Logf("50 that nobody has are looked for with %v messages", missed)
	for _, d := range held {
		nodes[7].Withdraw(d)
	}
	eventually(t, "all are withdrawn", func() bool { return nodes[7].announcer.settled() })
	withdrawn, _ := nodes[0].seen.take() // as far as they have arrived
	t.Logf("1000 are withdrawn with %v messages", withdrawn)
	if n := withdrawn[pb.Message_FIND_NODE]; n > 100 {
		t.Errorf("%d questions are asked to withdraw", n)
	}
	for _, n := range nodes {
		eventually(t, "no record is left", func() bool { return n.kept.size() == 0 })
	}
}

func (r *records) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// settled reports whether there are no news.
func (a *announcer) settled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.blobs {
		if b.due.IsZero() || !b.hold {
			return false
		}
	}
	return true
}

func TestWhoCannotBeDialledAsksOnly(t *testing.T) {
	nodes := meet(t, 3)
	edge := &node{host: newHost(t)}
	var err error
	cfg := Config{Network: "test", Bootstrap: []peer.AddrInfo{nodes[0].info()}, Loopback: true}
	if edge.Tracker, err = start(t.Context(), edge.host, cfg, brisk, nil); err != nil {
		t.Fatal(err)
	}
	defer edge.Close()
	d := blobs(1)[0]
	nodes[1].Announce(d)
	eventually(t, "it finds what others have", func() bool { return edge.finds(t, d, nodes[1]) })
	for _, n := range nodes {
		if n.dht.RoutingTable().Find(edge.host.ID()) != "" {
			t.Errorf("%s would ask it", n.id())
		}
	}
}

// What a site behind NAT has is found by another one, which reaches it through their hub.
func TestASiteThatCannotBeDialledIsFoundAtItsHub(t *testing.T) {
	hub := newHostWith(t, p2psite.Config{RelayService: true}, loopback)
	cfg := Config{Network: "test", Loopback: true}
	center, err := start(t.Context(), hub, cfg, brisk, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer center.Close()
	cfg.Bootstrap = []peer.AddrInfo{{ID: hub.ID(), Addrs: hub.Addrs()}}
	var edges []*node
	for range 2 {
		e := &node{host: newHostWith(t, p2psite.Config{Relays: cfg.Bootstrap})}
		if e.Tracker, err = start(t.Context(), e.host, cfg, brisk, nil); err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		edges = append(edges, e)
	}
	d := blobs(1)[0]
	edges[0].Announce(d)
	eventually(t, "it is found", func() bool { return edges[1].finds(t, d, edges[0]) })
	peers, _ := edges[1].Providers(t.Context(), d, 1)
	info := peer.AddrInfo{ID: edges[0].host.ID()}
	for _, a := range peers[0].Addrs {
		info.Addrs = append(info.Addrs, ma.StringCast(a))
	}
	if err := edges[1].host.Connect(t.Context(), info); err != nil {
		t.Errorf("at %v: %v", info.Addrs, err)
	}
}

func TestNetworksDoNotMeet(t *testing.T) {
	a := newNode(t, nil)
	b := newNode(t, nil, a)
	other := newNode(t, func(c *Config) { c.Network = "other" }, a)
	d := blobs(1)[0]
	b.Announce(d)
	eventually(t, "its own network finds it", func() bool { return a.finds(t, d, b) })
	if err := other.host.Connect(t.Context(), a.info()); err != nil {
		t.Fatal(err)
	}
	if peers, err := other.Providers(t.Context(), d, 8); len(peers) > 0 || !errors.Is(err, ErrAlone) {
		t.Errorf("another network finds %v, %v", peers, err)
	}
	for _, name := range []string{"", "a/b", "ä", string(make([]byte, 65))} {
		if _, err := New(t.Context(), a.host, Config{Network: name}); err == nil {
			t.Errorf("a network is called %q", name)
		}
	}
}

func TestTwoSitesOfWhichOneCanBeDialled(t *testing.T) {
	hub := newNode(t, nil)
	edge := newNode(t, func(c *Config) { c.Mode = Client }, hub)
	here, there := blobs(2)[0], blobs(2)[1]
	hub.Announce(here)
	edge.Announce(there)
	eventually(t, "the edge finds what the hub has", func() bool { return edge.finds(t, here, hub) })
	eventually(t, "the hub finds what the edge has", func() bool { return hub.finds(t, there, edge) })
}

func TestWhoCameLaterIsTold(t *testing.T) {
	a := newNode(t, nil)
	held := blobs(3)
	for _, d := range held {
		a.Announce(d)
	}
	if _, err := a.Providers(t.Context(), held[0], 3); !errors.Is(err, ErrAlone) {
		t.Errorf("alone, the error is %v", err)
	}
	b := newNode(t, nil, a)
	c := newNode(t, nil, a, b)
	for _, d := range held {
		eventually(t, "it is found", func() bool { return b.finds(t, d, a) && c.finds(t, d, a) })
	}
	eventually(t, "it is told", func() bool {
		return b.kept.size() == len(held) && c.kept.size() == len(held)
	})
}

func mustKey(d digest.Digest) []byte {
	key, ok := keyOf(d)
	if !ok {
		panic(d)
	}
	return key
}
