package peers

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// TestAMemberThatRefusesTheRegistry owns stripes that others then fetch themselves.
func TestAMemberThatRefusesTheRegistry(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("app", "v1", random(1<<20, 21), random(17<<20, 22))
	c := newCluster(t, r, 2)
	refuses := c.join(func(c *node.Config) { c.Registries = []string{"!" + host} })
	pullAtOnce(t, img, 2, c.members[:2]...)
	for _, path := range []string{"/v2/app/manifests/v1", img.path(img.order[1]), img.path(img.order[2])} {
		if a := refuses.get(path); a.status != http.StatusForbidden {
			t.Errorf("%s of the member that refuses: %d %v", path, a.status, a.err)
		}
	}
	if got := refuses.Status().Received; got != 0 {
		t.Errorf("the member that refuses has %d bytes of the registry", got)
	}
}

// TestWhatWasEvicted is had from others, and from the registry when nobody has it.
func TestWhatWasEvicted(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("app", "v1", random(1<<20, 23), random(9<<20, 24))
	c := newCluster(t, r, 2)
	pullAtOnce(t, img, 1, c.members...)
	sent := r.sent.Load()
	evict := func(m *member) {
		t.Helper()
		if _, err := m.GC(0); err != nil {
			t.Fatal(err)
		}
		if left := m.Status().Store.Bytes; left > 4<<20 {
			t.Fatalf("%d bytes are left", left)
		}
	}
	evict(c.members[0])
	late := c.join()
	pullAtOnce(t, img, 1, c.members[0], late)
	if more := r.sent.Load() - sent; more != 0 && !slow {
		t.Errorf("%d bytes left the registry although a member has them", more)
	}
	for _, m := range c.members {
		evict(m)
	}
	pullAtOnce(t, img, 1, c.members...)
	for _, m := range c.members {
		for _, known := range m.Status().Cluster.Members {
			if known.Strikes != 0 || known.State != "up" && known.State != "self" {
				t.Errorf("a member is held to be %s: %s", known.State, known.Fault)
			}
		}
	}
}

// TestAMemberWithoutWeight gets nothing for others.
func TestAMemberWithoutWeight(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("app", "v1", random(1<<20, 25), random(17<<20, 26))
	c := newCluster(t, r, 2)
	light := c.join(func(c *node.Config) { c.Weight = 0 })
	pullAtOnce(t, img, 2, c.members[:2]...)
	if s := light.Status(); s.Received != 0 || s.Cluster.Sent > 1<<20 {
		t.Errorf("it got %d bytes from the registry, and gave %d to members", s.Received, s.Cluster.Sent)
	}
	pullAtOnce(t, img, 1, light)
	if got := light.Status().Received; got > 4096 && !slow {
		t.Errorf("it got %d bytes from the registry for itself", got)
	}
}

// TestZones: a cold image leaves the registry once for each zone, and what one zone
// has all of is taken from there.
func TestZones(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.delay, r.rate = 10*time.Millisecond, 16<<20
	zone := func(name string) func(*node.Config) { return func(c *node.Config) { c.Zone = name } }
	c := newCluster(t, r, 0)
	for _, name := range []string{"a", "a", "b", "b"} {
		c.start(zone(name))
	}
	c.meet()
	img := r.push("app", "v1", random(1<<20, 27), random(17<<20, 28))
	pullAtOnce(t, img, 1, c.members...)
	if sent := r.sent.Load(); sent > 2*img.size() && !slow {
		t.Errorf("%d bytes left the registry, for two zones and an image of %d", sent, img.size())
	}
	again := r.push("app", "v2", random(1<<20, 29), random(17<<20, 30))
	pullAtOnce(t, again, 1, c.members[0])
	sent := r.sent.Load()
	r.kill()
	soon(t, again, c.members[3])
	pullAtOnce(t, again, 1, c.members...)
	if more := r.sent.Load() - sent; more != 0 {
		t.Errorf("%d bytes left the dead registry", more)
	}
}

// TestLimits are kept to: what takes some time at a limit takes no less than half of
// that.
func TestLimits(t *testing.T) {
	t.Parallel()
	const size, limit = 24 << 20, 4 << 20
	const least = size / limit / 2 * time.Second
	for name, set := range map[string]func(*node.Config, bool){
		"upload":   func(c *node.Config, first bool) { c.UploadLimit = map[bool]node.Size{true: limit}[first] },
		"download": func(c *node.Config, first bool) { c.DownloadLimit = map[bool]node.Size{false: limit}[first] },
		"upstream": func(c *node.Config, first bool) { c.UpstreamLimit = map[bool]node.Size{true: limit}[first] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			img := r.push("app", "v1", random(size, 31))
			c := newCluster(t, r, 0)
			first := c.start(func(c *node.Config) { set(c, true) })
			second := c.start(func(c *node.Config) { set(c, false); c.Weight = 0 })
			c.meet()
			took := func(m *member) time.Duration {
				begin := time.Now()
				pullAtOnce(t, img, 1, m)
				return time.Since(begin)
			}
			limited := took(first)
			if name != "upstream" {
				r.kill()
				limited = took(second)
			}
			if limited < least {
				t.Errorf("%d bytes took %v", size, limited)
			}
		})
	}
}

// TestTwoRegistriesThatClaimADigest: the bytes of one that lies reach no reader of
// the other, on any member, and no member is blamed for them.
func TestTwoRegistriesThatClaimADigest(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var mu sync.Mutex
	wrong := make(map[string][]byte) // by path
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		p := wrong[q.URL.Path]
		mu.Unlock()
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(p))
	}))
	t.Cleanup(liar.Close)
	c := newCluster(t, r, 3, func(c *node.Config) { c.Upstream["liar.test"] = liar.URL })
	for seed := range byte(4) { // each is placed otherwise
		layer := random(9<<20, 32+seed)
		img := r.push("app", fmt.Sprint("v", seed), layer)
		path := "/v2/x/blobs/" + string(digest.FromBytes(layer))
		lie := bytes.Clone(layer)
		for at := 0; at < len(lie); at += 1 << 20 {
			copy(lie[at+1000:], "these are the bytes of the liar")
		}
		mu.Lock()
		wrong[path] = lie
		mu.Unlock()
		readBoth(c, img, layer, strings.Replace(path, "/x/", "/liar.test/x/", 1))
	}
	for _, m := range c.members {
		for _, known := range m.Status().Cluster.Members {
			if known.Strikes != 0 {
				t.Errorf("a member is blamed: %s", known.Fault)
			}
		}
	}
}

// readBoth reads a layer from the registry and from the liar, through all members.
func readBoth(c *cluster, img *image, layer []byte, lying string) {
	c.Helper()
	lies := func(m *member, rang string) {
		a := m.get(lying, "Range", rang)
		if rang == "" && a.err == nil && a.status == http.StatusOK && len(a.body) == len(layer) {
			c.Error("wrong bytes came to a clean end")
		}
	}
	reads := func(m *member) {
		for rang, want := range map[string][]byte{
			"": layer, "bytes=1000-1099": layer[1000:1100], "bytes=4194304-": layer[4<<20:], "bytes=5243880-5243999": layer[5243880:5244000],
		} {
			if err := m.gives(want, img.path(digest.FromBytes(layer)), "Range", rang); err != nil {
				c.Errorf("Range %q: %v", rang, err)
			}
		}
	}
	for round, first := range []func(*member){
		func(m *member) { lies(m, "bytes=0-9437182") }, // all that can be had without its being hashed
		func(*member) {},
		func(m *member) { lies(m, "") },
		func(m *member) { lies(m, "bytes=1000-1099"); lies(m, "bytes=5243880-5243999") },
	} {
		var all sync.WaitGroup
		for _, m := range c.members {
			all.Go(func() { first(m) })
			if round > 0 {
				all.Go(func() { reads(m) })
			}
		}
		all.Wait()
	}
}
