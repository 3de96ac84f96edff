package peers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy"
)

// command asks a member's admin listener for something.
func (m *member) command(method, path string, says, brought any) error {
	p, err := json.Marshal(says)
	if err != nil {
		return err
	}
	q, err := http.NewRequest(method, m.AdminURL()+path, bytes.NewReader(p))
	if err != nil {
		return err
	}
	resp, err := client.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s", resp.Status, why)
	}
	return json.NewDecoder(resp.Body).Decode(brought)
}

// preheats waits until a preheat is over.
func (m *member) preheats(t *testing.T, q node.Preheat) (s node.PreheatStatus) {
	t.Helper()
	if err := m.command(http.MethodPost, "/api/v1/preheat", q, &s); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the preheat is over", func() bool {
		if err := m.command(http.MethodGet, "/api/v1/preheat/"+s.ID, nil, &s); err != nil {
			t.Fatal(err)
		}
		return s.State == "done" || s.State == "failed"
	})
	return s
}

func zone(name string) func(*node.Config) { return func(c *node.Config) { c.Zone = name } }

func TestAPreheatReachesTheMembersThatItIsFor(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	first := r.push("org/first", "v1", random(6<<20, 1), random(1<<20, 2))
	r.pushIndex(first)
	second := r.push("org/second", "v1", random(5<<20, 3))
	c := newCluster(t, r, 0)
	a, b := c.start(zone("a")), c.start(zone("b"))
	d := c.join(zone("b"))

	s := a.preheats(t, node.Preheat{Refs: []string{host + "/org/first:v1"}, Platform: "linux/amd64", AllNodes: true})
	if s.State != "done" || len(s.Nodes) != 3 {
		t.Fatalf("on all nodes: %+v", s)
	}
	for _, n := range s.Nodes {
		if i := n.Images[0]; n.State != "done" || i.Done != i.Size || i.Size <= first.size() || i.Digest != first.top {
			t.Errorf("on %s: %+v", n.ID, n)
		}
	}
	inB := "b"
	if s := a.preheats(t, node.Preheat{Refs: []string{host + "/org/second:v1"}, Platform: "all", Zone: &inB}); s.State != "done" || len(s.Nodes) != 2 {
		t.Errorf("in a zone: %+v", s)
	}
	for _, m := range []*member{a, b, d} {
		if held := held(t, m); held[host+"/org/first:v1"] < first.size() || (held[host+"/org/second:v1"] >= second.size()) != (m != a) {
			t.Errorf("%s holds %v", m.cfg.Zone, held)
		}
	}
	later := node.Preheat{Refs: []string{host + "/org/second:v1"}, Platform: "linux/amd64", AllNodes: true, At: time.Now().Add(2 * time.Second).Format(time.RFC3339Nano)}
	if s := a.preheats(t, later); s.State != "done" || len(s.Nodes) != 3 || s.Started.Before(s.At) {
		t.Errorf("on all nodes at a time: %+v", s)
	}
	r.kill()
	for _, m := range []*member{b, d} {
		if err := m.pull(second, ""); err != nil {
			t.Errorf("without the registry: %v", err)
		}
	}
}

// held returns how many bytes of images a member stores.
func held(t *testing.T, m *member) map[string]int64 {
	t.Helper()
	all := make(map[string]int64)
	for _, i := range m.Images(t.Context()).Images {
		for _, tag := range i.Tags {
			all[i.Repository+":"+tag] = i.Stored
		}
	}
	return all
}

func TestWhatIsWrongWithAPreheatIsSaid(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("org/app", "v1", random(2<<20, 1), random(1<<20, 2))
	r.set(func() { delete(r.content, "org/app/blobs/"+string(img.order[2])) })
	m := newCluster(t, r, 2).members[0]
	nowhere := "nowhere"
	for name, q := range map[string]node.Preheat{
		"nothing":     {},
		"too much":    {Refs: make([]string, 65)},
		"no name":     {Refs: []string{"ORG/APP"}},
		"no platform": {Refs: []string{"org/app:v1"}, Platform: "linux"},
		"no zone":     {Refs: []string{"org/app:v1"}, Zone: &nowhere},
		"both":        {Refs: []string{"org/app:v1"}, AllNodes: true, Zone: &nowhere},
	} {
		if err := m.command(http.MethodPost, "/api/v1/preheat", q, new(node.PreheatStatus)); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := m.preheats(t, node.Preheat{Refs: []string{"org/app:v1", "org/app:v2"}, Platform: "all", AllNodes: true})
	if s.State != "failed" {
		t.Errorf("an image that is incomplete and one that is not there: %+v", s)
	}
	for _, n := range s.Nodes {
		if len(n.Images) != 2 || !strings.Contains(n.Images[0].Error, string(img.order[2])) || !strings.Contains(strings.ToLower(n.Images[1].Error), "not found") {
			t.Errorf("%+v", n)
		}
	}
}

// TestAPrivateImageIsPreheatedAsItsReader finds out, too, that what opens it is kept nowhere.
func TestAPrivateImageIsPreheatedAsItsReader(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("org/secret", "v1", random(5<<20, 1))
	r.restrict("bearer", map[string]string{username + ":" + password: "org/secret"}, "org/secret")
	c := newCluster(t, r, 3)
	q := node.Preheat{Refs: []string{"org/secret:v1"}, Platform: "all", AllNodes: true}
	if s := c.members[0].preheats(t, q); s.State != "failed" {
		t.Errorf("without credentials: %+v", s)
	}
	q.Authorization = map[string]string{host: basic(password)}
	s := c.members[0].preheats(t, q)
	if s.State != "done" {
		t.Fatalf("with credentials: %+v", s)
	}
	text, err := json.Marshal(c.members[0].Status())
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{password, strings.TrimPrefix(basic(password), "Basic ")}
	for i, m := range c.members {
		if held(t, m)[host+"/org/secret:v1"] < img.size() {
			t.Errorf("member %d holds %v", i, held(t, m))
		}
		err := filepath.WalkDir(m.cfg.DataDir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			p, err := os.ReadFile(path)
			for _, s := range secrets {
				if bytes.Contains(p, []byte(s)) {
					t.Errorf("%s has a password", path)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		for _, s := range secrets {
			if strings.Contains(m.log.String(), s) || strings.Contains(string(text), s) {
				t.Error("a log or a status has a password")
			}
		}
	}
}

func TestAnImageIsEvictedWithoutWhatOthersNeed(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	base := random(3<<20, 1)
	one, two := r.push("org/one", "v1", base, random(2<<20, 2)), r.push("org/two", "v1", base, random(1<<20, 3))
	c := newCluster(t, r, 2)
	for _, m := range c.members {
		for _, img := range []*image{one, two} {
			if err := m.pull(img, ""); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range m.Images(t.Context()).Images {
			if want := i.Stored - int64(len(base)); i.Alone != want {
				t.Errorf("%s: %d bytes are its own, want %d", i.Ref(), i.Alone, want)
			}
		}
	}
	var done node.Evicted
	if err := c.members[0].command(http.MethodPost, "/api/v1/evict", node.EvictRequest{Ref: "org/one:v1", AllNodes: true}, &done); err != nil {
		t.Fatal(err)
	}
	// Something of the node's own may read a blob still, which then stays.
	if gone := done.Freed + done.Kept; done.Members != 1 || done.Freed == 0 || gone < 2*2<<20 || gone > 2*2<<20+4<<10 {
		t.Errorf("evicted: %+v", done)
	}
	r.kill()
	for _, m := range c.members {
		if got := held(t, m); got[host+"/org/one:v1"] != 0 || got[host+"/org/two:v1"] < two.size() {
			t.Errorf("a member holds %v", got)
		}
		if err := m.pull(two, ""); err != nil {
			t.Errorf("what shares a layer with what was evicted: %v", err)
		}
	}
	if err := c.members[0].command(http.MethodPost, "/api/v1/evict", node.EvictRequest{Ref: "ORG"}, &done); err == nil {
		t.Error("no name was evicted")
	}
}

// TestWhatIsReferredToIsAnImage of its own although another manifest is about it: what it needs is
// not evicted with an image that shares a layer with it.
func TestWhatIsReferredToIsAnImage(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	base := random(3<<20, 1)
	signed, other := r.push("org/signed", "v1", base, random(2<<20, 2)), r.push("org/other", "v1", base)
	size := len(r.content["org/signed/manifests/"+string(signed.manifest)])
	p, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "artifactType": "application/x-signature", "layers": []any{},
		"config":  map[string]any{"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest.FromString("{}"), "size": 2},
		"subject": map[string]any{"mediaType": manifestType, "digest": signed.manifest, "size": size},
	})
	referrer := r.pushManifest("org/signed", "a-signature", manifestType, p)
	c := newCluster(t, r, 1)
	m := c.members[0]
	for _, path := range []string{"manifests/" + string(signed.manifest), "manifests/" + string(referrer)} { // by digest alone
		if a := m.get("/v2/org/signed/" + path); a.status != http.StatusOK {
			t.Fatal(a.status)
		}
	}
	for d, p := range signed.blobs {
		if err := m.gives(p, signed.path(d)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.pull(other, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the image is told of", func() bool {
		return slices.ContainsFunc(m.Images(t.Context()).Images, func(h proxy.Holding) bool { return h.Digest == signed.manifest && h.Stored >= signed.size() })
	})
	var done node.Evicted
	if err := m.command(http.MethodPost, "/api/v1/evict", node.EvictRequest{Ref: "org/other:v1"}, &done); err != nil {
		t.Fatal(err)
	}
	r.kill()
	for d, p := range signed.blobs {
		if err := m.gives(p, signed.path(d)); err != nil {
			t.Errorf("a blob of what was not evicted: %v", err)
		}
	}
}

// TestTheStatusTellsOfAPull is about what a member knows of the cluster while it pulls.
func TestTheStatusTellsOfAPull(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("org/app", "v1", random(28<<20, 1), random(8<<20, 2)) // stripes enough for each member to own some
	r.pushIndex(img)
	r.set(func() { r.rate = 6 << 20 })
	c := newCluster(t, r, 3)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pullAtOnce(t, img, 1, c.members...)
	}()
	eventually(t, "layers are under way, and flows between all members", func() bool {
		var s node.Status
		if err := c.members[0].command(http.MethodGet, "/api/v1/status", nil, &s); err != nil {
			t.Fatal(err)
		}
		apart := false // between two others
		for _, f := range s.Cluster.Flows {
			apart = apart || f.From != s.Cluster.ID && f.To != s.Cluster.ID
		}
		return len(s.UnderWay) == 1 && s.UnderWay[0].Ref == host+"/org/app:v1" && s.UnderWay[0].Clients > 0 &&
			s.UnderWay[0].Here > 0 && s.UnderWay[0].Here < s.UnderWay[0].Size && len(s.UnderWay[0].Layers) == 3 && apart && s.Traffic.In > 0
	})
	<-done
	var s node.Status
	eventually(t, "all members have told what they served", func() bool {
		s = node.Status{}
		if err := c.members[0].command(http.MethodGet, "/api/v1/status", nil, &s); err != nil {
			t.Fatal(err)
		}
		want := 3*img.size() - r.sent.Load() // but for manifests, and for what was cut off on the way
		off := s.Savings.Bytes - want
		return s.Savings.Members == 3 && len(s.UnderWay) == 0 && off > -64<<10 && off < 1<<20
	})
	if s.Demand.Served != img.size() || s.Demand.Asked < 5 {
		t.Errorf("demand: %+v", s.Demand)
	}
	var h node.History
	if err := c.members[0].command(http.MethodGet, "/api/v1/history", nil, &h); err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, x := range h.Samples {
		for _, n := range x.Served {
			sum += float64(n) * h.Every
		}
	}
	if sum < 0.8*float64(img.size()) || sum > 1.2*float64(img.size()) {
		t.Errorf("the samples add up to %.0f bytes of %d", sum, img.size())
	}
}

func TestAPreheatIsEndedOnAllMembers(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.push("org/app", "v1", random(16<<20, 1))
	r.set(func() { r.rate = 256 << 10 })
	c := newCluster(t, r, 2)
	var s node.PreheatStatus
	if err := c.members[0].command(http.MethodPost, "/api/v1/preheat", node.Preheat{Refs: []string{"org/app:v1"}, Platform: "all", AllNodes: true}, &s); err != nil {
		t.Fatal(err)
	}
	runs := func(m *member) bool {
		all := m.Status().Preheats
		return len(all) == 1 && all[0].State == "running"
	}
	eventually(t, "both members preheat", func() bool { return runs(c.members[0]) && runs(c.members[1]) })
	if err := c.members[0].command(http.MethodDelete, "/api/v1/preheat/"+s.ID, nil, &s); err != nil {
		t.Fatal(err)
	}
	eventually(t, "neither preheats", func() bool { return !runs(c.members[0]) && !runs(c.members[1]) })
	if err := c.members[0].command(http.MethodGet, "/api/v1/preheat/"+s.ID, nil, &s); err != nil || s.State != "failed" || s.Ended.IsZero() {
		t.Errorf("after its end: %+v, %v", s, err)
	}
	if err := c.members[0].command(http.MethodGet, "/api/v1/preheat/another", nil, &s); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("one that there is not: %v", err)
	}
}
