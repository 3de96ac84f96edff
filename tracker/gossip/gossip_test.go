package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

// brisk is for tests: it finds and loses members within a second or so.
var brisk = pace{
	lan: func(c *memberlist.Config) {
		c.GossipInterval = 20 * time.Millisecond
		c.ProbeInterval = 200 * time.Millisecond
		c.ProbeTimeout = 100 * time.Millisecond
		c.PushPullInterval = time.Second
		c.GossipToTheDeadTime = time.Second
		c.TCPTimeout = 2 * time.Second
	},
	rejoin:     50 * time.Millisecond,
	heal:       300 * time.Millisecond,
	flush:      20 * time.Millisecond,
	retry:      50 * time.Millisecond,
	settle:     50 * time.Millisecond,
	refresh:    time.Hour,
	defaultFor: 5 * time.Second,
}

// node is a member that runs.
type node struct {
	*Gossip
	providers *tracker.Providers
	id        tracker.ID
	end       func() // of Run
}

type option func(*Config, *pace)

func join(addresses ...string) option { return func(c *Config, _ *pace) { c.Join = addresses } }

func secrets(secrets ...string) option {
	return func(c *Config, _ *pace) { c.Secrets = byteSlices(secrets) }
}

func byteSlices(texts []string) (slices [][]byte) {
	for _, s := range texts {
		slices = append(slices, []byte(s))
	}
	return slices
}

// run starts a member. When the test ends, it ends without saying so.
func run(t *testing.T, id tracker.ID, options ...option) *node {
	t.Helper()
	providers := tracker.NewProviders(10_000, time.Hour)
	cfg := Config{
		Self:      tracker.Peer{ID: id, Name: "host of " + string(id), Addrs: []string{"/ip4/0.0.0.0/tcp/5052"}, Weight: 1},
		Listen:    "127.0.0.1:0",
		Secrets:   [][]byte{[]byte("of the cluster")},
		Providers: providers,
	}
	p := brisk
	for _, o := range options {
		o(&cfg, &p)
	}
	g, err := start(cfg, p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = g.Run(ctx)
	}()
	n := &node{g, providers, id, func() { cancel(); <-ended }}
	t.Cleanup(n.crash)
	return n
}

// crash ends a member as kill -9 does.
func (n *node) crash() {
	_ = n.list.Shutdown()
	n.end()
}

// cluster runs members that know the first.
func cluster(t *testing.T, n int, options ...option) []*node {
	t.Helper()
	var nodes []*node
	for i := range n {
		all := options
		if i > 0 {
			all = append(slices.Clone(options), join(nodes[0].Addr()))
		}
		nodes = append(nodes, run(t, tracker.ID(fmt.Sprint("peer", i)), all...))
	}
	waitMeet(t, nodes...)
	return nodes
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("in 20 seconds not: ", what)
}

// waitMeet waits until the nodes are each other's only peers.
func waitMeet(t *testing.T, nodes ...*node) {
	t.Helper()
	var want []tracker.ID
	for _, n := range nodes {
		want = append(want, n.id)
	}
	slices.Sort(want)
	for _, n := range nodes {
		eventually(t, fmt.Sprintf("%s sees %v", n.id, want), func() bool { return slices.Equal(n.sees(), want) })
	}
}

func (n *node) sees() (ids []tracker.ID) {
	for _, p := range n.View().Peers() {
		ids = append(ids, p.ID)
	}
	return ids
}

var _ tracker.Members = (*Gossip)(nil)

func TestTwoMembersMeet(t *testing.T) {
	a := run(t, "a", func(c *Config, _ *pace) {
		c.Self.Zone, c.Self.Weight = "here", 7
		c.Self.Addrs = []string{"/ip4/0.0.0.0/tcp/1", "/ip6/::/udp/2/quic-v1", "/tcp/3", "/ip4/10.1.2.3/tcp/4", "/dns4/a.example/tcp/5"}
	})
	b := run(t, "b", join(a.Addr()))
	waitMeet(t, a, b)
	got, _ := b.View().Peer("a")
	want := tracker.Peer{ID: "a", Name: "host of a", Zone: "here", Weight: 7, Addrs: []string{
		"/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/2/quic-v1", "/ip4/127.0.0.1/tcp/3", "/ip4/10.1.2.3/tcp/4", "/dns4/a.example/tcp/5"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("a is %+v, want %+v", got, want)
	}
	if a.View().Self().ID != "a" || b.View().Self().ID != "b" || a.View().Alone() {
		t.Error("the members do not know themselves")
	}
}

func TestFiveMembersMeetAndAgree(t *testing.T) {
	nodes := cluster(t, 5)
	for i := range 20 {
		key := fmt.Sprint("key ", i)
		for _, n := range nodes {
			if a, b := n.View().Owners(key, 1)[0].ID, nodes[0].View().Owners(key, 1)[0].ID; a != b {
				t.Errorf("%s is owned by %s and by %s", key, a, b)
			}
		}
	}
}

func TestMembersWithoutSecretsMeet(t *testing.T) { cluster(t, 2, secrets()) }

func TestAChangeOfTheMembershipIsTold(t *testing.T) {
	a := run(t, "a")
	changed := a.Changed()
	if !a.View().Alone() {
		t.Error("it is not alone")
	}
	run(t, "b", join(a.Addr()))
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("it is not told")
	}
	if got := a.sees(); !slices.Equal(got, []tracker.ID{"a", "b"}) {
		t.Errorf("it sees %v", got)
	}
}

func TestWhoHasAnotherSecretIsKeptOut(t *testing.T) {
	inside := cluster(t, 2)
	for name, with := range map[string]option{"another": secrets("of another cluster"), "none": secrets()} {
		outside := run(t, tracker.ID(name), with)
		if err := outside.joinOne(inside[0].Addr()); err == nil {
			t.Errorf("with %s secret it joins", name)
		}
		if err := inside[0].joinOne(outside.Addr()); err == nil {
			t.Errorf("it is joined, with %s secret", name)
		}
		if !outside.View().Alone() {
			t.Errorf("with %s secret it sees %v", name, outside.sees())
		}
	}
	waitMeet(t, inside...)
}

func TestSecretsAreRotatedWithoutLosingMembers(t *testing.T) {
	nodes := cluster(t, 3, secrets("old"))
	for _, step := range [][]string{{"old", "new"}, {"new", "old"}, {"new"}} {
		for _, n := range nodes {
			if err := n.SetSecrets(byteSlices(step)); err != nil {
				t.Fatal(err)
			}
			wantUnderstanding(t, nodes)
		}
	}
	if err := nodes[0].joinOne(run(t, "late", secrets("old")).Addr()); err == nil {
		t.Error("the old secret is still good")
	}
	waitMeet(t, append(nodes, run(t, "new", secrets("new"), join(nodes[1].Addr())))...)
}

// wantUnderstanding waits until every node has an answer of every other, by UDP and
// by TCP.
func wantUnderstanding(t *testing.T, nodes []*node) {
	t.Helper()
	for _, from := range nodes {
		for _, to := range nodes {
			if from == to {
				continue
			}
			addr, err := net.ResolveUDPAddr("udp", to.Addr())
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, fmt.Sprintf("%s answers %s", to.id, from.id), func() bool {
				_, err := from.list.Ping(to.roster.name, addr)
				return err == nil
			})
			if _, err := from.list.Join([]string{to.Addr()}); err != nil {
				t.Errorf("%s and %s: %v", from.id, to.id, err)
			}
		}
	}
}

func TestEncryptionIsNotTurnedOnOrOffLater(t *testing.T) {
	with, without := run(t, "with"), run(t, "without", secrets())
	if with.SetSecrets(nil) == nil || without.SetSecrets(byteSlices([]string{"x"})) == nil {
		t.Error("it is")
	}
	if err := without.SetSecrets(nil); err != nil {
		t.Error(err)
	}
	if with.SetSecrets(byteSlices([]string{"x", ""})) == nil {
		t.Error("an empty secret is one")
	}
}

func TestANameStandsForAllOfItsAddresses(t *testing.T) {
	nodes := cluster(t, 3)
	asked := make(chan string, 100)
	late := run(t, "late", func(c *Config, _ *pace) {
		_, port, _ := net.SplitHostPort(nodes[2].Addr())
		c.Join = []string{"missing.example", "cluster.example:" + port}
		c.Resolve = func(_ context.Context, host string) ([]string, error) {
			select {
			case asked <- host:
			default:
			}
			if host == "missing.example" {
				return nil, errors.New("no such host")
			}
			return []string{"::1", "127.0.0.2", "127.0.0.1", "127.0.0.3"}, nil // one of which has a member
		}
	})
	waitMeet(t, append(nodes, late)...)
	if a, b := <-asked, <-asked; a != "missing.example" || b != "cluster.example" {
		t.Errorf("it resolves %s and %s", a, b)
	}
}

func TestNoMoreThanSoManyAddressesAreTried(t *testing.T) {
	g := run(t, "a")
	g.cfg.Join = []string{"many.example", g.Addr()}
	g.cfg.Resolve = func(context.Context, string) (ips []string, _ error) {
		for i := range 1000 {
			ips = append(ips, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
		}
		return append(ips, "nonsense", ips[0]), nil
	}
	got, err := g.candidates(t.Context())
	if err != nil || len(got) != maxJoin || slices.Contains(got, g.Addr()) {
		t.Errorf("%d addresses, %v", len(got), err)
	}
	if _, port, _ := net.SplitHostPort(g.Addr()); !strings.HasSuffix(got[0], ":"+port) {
		t.Errorf("%s has another port than this member's", got[0])
	}
}

func TestAMemberStartedBeforeItsSeedJoins(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seed := l.Addr().String()
	l.Close()
	early := run(t, "early", join(seed))
	time.Sleep(200 * time.Millisecond) // for it to fail
	late := run(t, "late", func(c *Config, _ *pace) { c.Listen = seed })
	waitMeet(t, early, late)
}

// slowToBury never finds out that a member has crashed.
func slowToBury(_ *Config, p *pace) {
	lan := p.lan
	p.lan = func(c *memberlist.Config) {
		lan(c)
		c.ProbeInterval = time.Hour
	}
}

func TestAMemberThatWasKilledIsBackAtOnce(t *testing.T) {
	nodes := cluster(t, 3, slowToBury)
	for _, where := range []string{"127.0.0.1:0", "127.0.0.1:0", "the same"} {
		old := nodes[2]
		old.crash()
		if where == "the same" {
			where = old.Addr()
		}
		back := run(t, old.id, slowToBury, join(nodes[0].Addr()), func(c *Config, _ *pace) { c.Listen = where })
		nodes[2] = back
		for _, n := range nodes[:2] {
			eventually(t, "the peer is what runs now", func() bool {
				m, ok := n.roster.current().members[old.id]
				return ok && m.node.Address() == back.Addr() && m.boot == back.roster.boot
			})
		}
		waitMeet(t, nodes...)
	}
}

func TestTheEndOfAMemberThatIsBackIsNotItsOwn(t *testing.T) {
	nodes := cluster(t, 3)
	d := digest.FromString("x")
	old := nodes[2].roster.name
	nodes[2].crash()
	nodes[2] = run(t, nodes[2].id, join(nodes[0].Addr()))
	nodes[2].Announce(d)
	for _, n := range nodes[:2] {
		eventually(t, "what was killed is gone, and what runs is there", func() bool {
			return !n.knows(old) && n.knows(nodes[2].roster.name)
		})
	}
	waitMeet(t, nodes...)
	waitKept(t, nodes, []digest.Digest{d}, nodes[2].id)
}

func (n *node) knows(name string) bool {
	n.roster.mu.Lock()
	defer n.roster.mu.Unlock()
	_, ok := n.roster.nodes[name]
	return ok
}

func TestOwnershipMovesAwayFromWhoDrains(t *testing.T) {
	nodes := cluster(t, 3)
	if err := nodes[1].Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		eventually(t, "it owns nothing", func() bool { return len(n.View().Owners("key", 3)) == 2 })
		if p, ok := n.View().Peer(nodes[1].id); !ok || !p.Draining {
			t.Errorf("for %s it is %+v", n.id, p)
		}
	}
	if !nodes[1].View().Self().Draining {
		t.Error("it does not know that it drains")
	}
}

func TestWhoLeavesIsGone(t *testing.T) {
	nodes := cluster(t, 3)
	d := digest.FromString("x")
	nodes[2].Announce(d)
	eventually(t, "the blob is known", func() bool { return len(nodes[0].providers.Of(d)) == 1 })
	if err := nodes[2].Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := nodes[2].Leave(t.Context()); err != nil {
		t.Error("leaving twice: ", err)
	}
	waitMeet(t, nodes[:2]...)
	for _, n := range nodes[:2] {
		eventually(t, "its blobs are forgotten", func() bool { return len(n.providers.Of(d)) == 0 })
	}
}

func TestANodeAloneDrainsAndLeaves(t *testing.T) {
	n := run(t, "a")
	if err := errors.Join(n.Drain(t.Context()), n.Leave(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestLeavingWithoutTimeClosesThePorts(t *testing.T) {
	n := cluster(t, 2)[1]
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Leave(over); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	l, err := net.Listen("tcp", n.Addr())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestACrashIsNoticed(t *testing.T) {
	nodes := cluster(t, 3)
	nodes[1].crash()
	waitMeet(t, nodes[0], nodes[2])
}

// partition cuts a network in two, between members of different halves.
type partition struct {
	mu     sync.Mutex
	halves map[string]int // by address; nil is whole
}

func (p *partition) cut(a, b string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.halves != nil && p.halves[a] != p.halves[b]
}

func (p *partition) set(halves map[string]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.halves = halves
}

// wire is a transport through a network that may be cut.
type wire struct {
	*memberlist.NetTransport
	own  string
	part *partition
}

func (w *wire) WriteToAddress(p []byte, a memberlist.Address) (time.Time, error) {
	if w.part.cut(w.own, a.Addr) {
		return time.Now(), nil
	}
	return w.NetTransport.WriteToAddress(p, a)
}

func (w *wire) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	if w.part.cut(w.own, a.Addr) {
		return nil, errors.New("no route")
	}
	return w.NetTransport.DialAddressTimeout(a, d)
}

func over(part *partition) option {
	return func(_ *Config, p *pace) {
		lan := p.lan
		p.lan = func(c *memberlist.Config) {
			lan(c)
			inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{"127.0.0.1"}, Logger: c.Logger})
			if err != nil {
				panic(err)
			}
			c.Transport = &wire{inner, fmt.Sprint("127.0.0.1:", inner.GetAutoBindPort()), part}
		}
	}
}

func TestTheHalvesOfAPartitionFindEachOtherAgain(t *testing.T) {
	for _, c := range []struct {
		name       string
		forgetSeed bool
	}{{"by the addresses they were given", false}, {"by the addresses they had", true}} {
		t.Run(c.name, func(t *testing.T) {
			part := new(partition)
			nodes := cluster(t, 4, over(part))
			left, right := nodes[:2], nodes[2:]
			if c.forgetSeed {
				nodes[0].crash()
				left, nodes = left[1:], nodes[1:]
				waitMeet(t, nodes...)
			}
			halves := make(map[string]int)
			for _, n := range right {
				halves[n.Addr()] = 1
			}
			part.set(halves)
			waitMeet(t, left...)
			waitMeet(t, right...)
			part.set(nil)
			waitMeet(t, nodes...)
		})
	}
}

func TestAMemberWhoseMetadataMakesNoSenseIsNoPeer(t *testing.T) {
	a := run(t, "a")
	c := memberlist.DefaultLANConfig()
	brisk.lan(c)
	c.Name, c.BindAddr, c.BindPort, c.AdvertisePort = "stranger", "127.0.0.1", 0, 0
	c.Logger = log.New(io.Discard, "", 0)
	keys, err := deriveKeys(a.cfg.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	c.SecretKey = keys[0]
	stranger, err := memberlist.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Shutdown()
	if _, err := stranger.Join([]string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is a member", func() bool { return a.list.NumMembers() == 2 })
	waitMeet(t, a)
}

func TestASettingThatMakesNoSenseIsRefused(t *testing.T) {
	good := Config{Self: tracker.Peer{ID: "a", Weight: 1}, Listen: "127.0.0.1:0"}
	for name, spoil := range map[string]func(*Config){
		"no ID":               func(c *Config) { c.Self.ID = "" },
		"no base58":           func(c *Config) { c.Self.ID = "a/b" },
		"no port":             func(c *Config) { c.Listen = "127.0.0.1" },
		"a name":              func(c *Config) { c.Listen = "localhost:0" },
		"a large port":        func(c *Config) { c.Listen = "127.0.0.1:65536" },
		"a name of its own":   func(c *Config) { c.Advertise = "host.example" },
		"advertises anything": func(c *Config) { c.Advertise = "::" },
		"an empty secret":     func(c *Config) { c.Secrets = [][]byte{{}} },
		"a long zone":         func(c *Config) { c.Self.Zone = strings.Repeat("z", 64) },
		"weight":              func(c *Config) { c.Self.Weight = 101 },
		"no multiaddr":        func(c *Config) { c.Self.Addrs = []string{"10.0.0.1:5052"} },
		"long addresses": func(c *Config) {
			for i := range 5 {
				c.Self.Addrs = append(c.Self.Addrs, fmt.Sprintf("/dns4/%s/tcp/%d", strings.Repeat("a", 100), i))
			}
		},
	} {
		c := good
		spoil(&c)
		g, err := Start(c)
		if err == nil {
			t.Errorf("%s: it starts", name)
			_ = g.Leave(t.Context())
		} else if !strings.HasPrefix(err.Error(), "gossip: ") {
			t.Errorf("%s: error is %q", name, err)
		}
	}
	if g, err := Start(good); err != nil {
		t.Error(err)
	} else if err := g.Leave(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAMemberOnAllAddressesIsReachedAtOne(t *testing.T) {
	for _, listen := range []string{":0", "0.0.0.0:0"} {
		g, err := Start(Config{Self: tracker.Peer{ID: "a"}, Listen: listen})
		if err != nil {
			t.Fatal(err)
		}
		host, port, _ := net.SplitHostPort(g.Addr())
		if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() || port == "0" {
			t.Errorf("listening on %s, it is reached at %s", listen, g.Addr())
		}
		_ = g.Leave(t.Context())
	}
}
