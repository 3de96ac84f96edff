package peers

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/gossip"
)

// TestInvalidateReachesEveryMember, and names those that it does not reach.
func TestInvalidateReachesEveryMember(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	c := newCluster(t, r, 3, func(c *node.Config) { c.TagPolicy = []string{host + "/*=pin"} })
	old := r.push("app", "v1", []byte("old"))
	pullAtOnce(t, old, 1, c.members...)
	for i, m := range c.members {
		img := r.push("app", "v1", fmt.Append(nil, "new ", i))
		if err := c.members[0].pull(old, ""); err != nil {
			t.Errorf("what is pinned has moved: %v", err)
		}
		resp, err := client.Post(m.AdminURL()+"/api/v1/invalidate?ref="+host+"/app:v1", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := readAll(resp)
		if want := `{"tags":1,"members":2}`; strings.TrimSpace(string(body)) != want {
			t.Errorf("invalidate answers %s, want %s", body, want)
		}
		pullAtOnce(t, img, 1, c.members...)
		old = img
	}

	// A member that gossips, and cannot be reached otherwise.
	identity, err := libp2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	mute, err := gossip.Start(gossip.Config{
		Self:    tracker.Peer{ID: identity.ID(), Name: "mute", Addrs: []string{"/ip4/127.0.0.1/tcp/1"}},
		Listen:  "127.0.0.1:0",
		Join:    []string{c.members[0].Status().Cluster.Gossip},
		Secrets: [][]byte{[]byte(secret)},
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = mute.Run(t.Context()) }()
	t.Cleanup(func() { _ = mute.Leave(t.Context()) })
	eventually(t, "the mute one is a member", func() bool { return len(c.members[1].Status().Cluster.Members) == 4 })
	done, err := c.members[1].Invalidate(t.Context(), host+"/app:v1")
	if err != nil || done.Members != 2 || len(done.Failed) != 1 || !strings.Contains(done.Failed[0], string(identity.ID())) || !strings.Contains(done.Failed[0], "mute") {
		t.Errorf("%+v, %v", done, err)
	}
}

// TestAStrangerIsKeptOut: a node with another secret, or none, is no member, and
// goes on alone as the cluster does without it.
func TestAStrangerIsKeptOut(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("app", "v1", random(5<<20, 41))
	c := newCluster(t, r, 2)
	var strangers []*member
	for _, change := range []func(*node.Config){
		func(cfg *node.Config) {
			cfg.ClusterSecretFile = write(t, t.TempDir(), "secret", "the secret of another cluster")
		},
		func(cfg *node.Config) { cfg.ClusterSecretFile, cfg.InsecureCluster = "", true },
	} {
		strangers = append(strangers, run(t, c.settings(change)))
	}
	for _, s := range strangers {
		eventually(t, "the stranger has tried to join", func() bool { return strings.Contains(s.log.String(), "members could not be joined") })
	}
	pullAtOnce(t, img, 1, append(strangers, c.members...)...)
	for _, m := range append(strangers, c.members...) {
		s := m.Status()
		want := 2
		if m == strangers[0] || m == strangers[1] {
			want = 1
			if s.Received < img.size() || s.Cluster.Received != 0 {
				t.Errorf("a stranger has %d bytes from the registry and %d from members", s.Received, s.Cluster.Received)
			}
		}
		if n := len(s.Cluster.Members); n != want {
			t.Errorf("a node knows %d members, want %d", n, want)
		}
	}

	// It may know a member's address and ID, as from a log.
	identity, err := libp2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	target := c.members[0].Status().Cluster
	peer := tracker.Peer{ID: target.ID, Addrs: target.P2P}
	h, err := libp2p.New(libp2p.Config{Identity: identity, Members: tracker.NewStatic(tracker.NewView(tracker.Peer{ID: identity.ID()}, []tracker.Peer{peer}))})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if s, err := h.Open(t.Context(), peer); err == nil {
		_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := s.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Error("a stranger is answered by a member")
		}
	}
}

// load pulls small images through members until it is stopped, and reports what
// goes wrong.
type load struct {
	stop   chan struct{}
	all    sync.WaitGroup
	mu     sync.Mutex
	pulled int
}

// newLoad starts clients, each of which takes one of the members that pick returns.
func newLoad(t *testing.T, r *registry, clients int, pick func() []*member) *load {
	l := &load{stop: make(chan struct{})}
	for i := range clients {
		l.all.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-l.stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				img := r.push("load", fmt.Sprint("v", i, "-", n), random(2<<20+n, byte(100+i)))
				for j, m := range pick() {
					if err := m.pull(img, ""); err != nil {
						t.Errorf("client %d, image %d, node %d: %v", i, n, j+1, err)
					}
				}
				l.mu.Lock()
				l.pulled++
				l.mu.Unlock()
			}
		})
	}
	return l
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pulled
}

// more waits until some more images have been pulled.
func (l *load) more(t *testing.T, n int) {
	t.Helper()
	before := l.count()
	eventually(t, "images are pulled", func() bool { return l.count() >= before+n })
}

func (l *load) end() {
	close(l.stop)
	l.all.Wait()
}

// TestSecretsAreExchangedUnderLoad in three steps, through which everybody stays a
// member.
func TestSecretsAreExchangedUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	c := newCluster(t, r, 3)
	l := newLoad(t, r, 2, func() []*member { return c.members })
	const next = "the next secret of the cluster"
	for step, text := range []string{secret + "\n" + next, next + "\n" + secret, next} {
		for _, m := range c.members {
			if err := os.WriteFile(m.cfg.ClusterSecretFile, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range c.members {
			eventually(t, "the secrets are read again", func() bool {
				return strings.Count(m.log.String(), "cluster secrets were read again") > step
			})
		}
		l.more(t, 4)
		c.meet()
	}
	l.end()
	late := c.join(func(cfg *node.Config) { cfg.ClusterSecretFile = write(t, t.TempDir(), "secret", next) })
	if n := len(late.Status().Cluster.Members); n != 4 {
		t.Errorf("a node with the new secret knows %d members", n)
	}
	left := run(t, c.settings())
	eventually(t, "a node with the old secret has tried to join", func() bool { return strings.Contains(left.log.String(), "members could not be joined") })
	if n := len(left.Status().Cluster.Members); n != 1 {
		t.Errorf("a node with the old secret knows %d members", n)
	}
	checkNoSecrets(t, c.members, next)
}

// TestAMemberThatLeaves is missed by nobody: neither by clients of others, while
// it owns what they wait for, nor by its own, who get to the end.
func TestAMemberThatLeaves(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.rate = 8 << 20
	img := r.push("app", "v1", random(24<<20, 42))
	c := newCluster(t, r, 3)
	var all sync.WaitGroup
	for i, m := range c.members {
		all.Go(func() {
			if err := m.gives(img.blobs[img.order[1]], img.path(img.order[1])); err != nil {
				t.Errorf("node %d: %v", i+1, err)
			}
		})
	}
	eventually(t, "the pull is under way", func() bool { return r.sent.Load() > 4<<20 })
	c.stop(c.members[2])
	all.Wait()
	c.meet()
	pullAtOnce(t, img, 1, c.members...)
	if sent := r.sent.Load(); sent > 2*img.size() && !slow {
		t.Errorf("%d bytes left the registry, for an image of %d", sent, img.size())
	}
}

// TestARollingRestart of all members, while their clients pull.
func TestARollingRestart(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	c := newCluster(t, r, 3)
	var mu sync.RWMutex
	living := c.members
	l := newLoad(t, r, 2, func() []*member {
		mu.RLock()
		defer mu.RUnlock()
		return living[1:] // the next one to be restarted has no clients any more
	})
	for range 3 {
		l.more(t, 2)
		mu.Lock()
		old := living[0]
		mu.Unlock()
		id := old.Status().Cluster.ID
		c.stop(old)
		l.more(t, 2)
		again := c.join(func(cfg *node.Config) { cfg.DataDir = old.cfg.DataDir })
		if got := again.Status().Cluster.ID; got != id {
			t.Errorf("a member was %s and is %s", id, got)
		}
		l.more(t, 2) // those that have seen the old list are done
		mu.Lock()
		living = c.members
		mu.Unlock()
		l.more(t, 4)
	}
	l.end()
	for _, m := range c.members {
		for _, known := range m.Status().Cluster.Members {
			if known.Strikes != 0 {
				t.Errorf("a member is blamed: %s", known.Fault)
			}
		}
		if a := m.get("/v2/"); a.status != http.StatusOK {
			t.Errorf("%d %v", a.status, a.err)
		}
	}
}
