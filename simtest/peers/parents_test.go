package peers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/parent"
)

// hub is a node of another site, and the line to it.
type hub struct {
	*member
	*httptest.Server // the line
	sent             atomic.Int64
	spoil            atomic.Pointer[func(q *http.Request, resp *http.Response)]
}

// newHub starts a node of another site before a registry.
func newHub(t *testing.T, r *registry, changes ...func(*node.Config)) *hub {
	t.Helper()
	alone := &cluster{T: t, registry: r}
	cfg := alone.settings(append(changes, func(c *node.Config) { c.ClusterConfig = node.ClusterConfig{} })...)
	return lineTo(t, run(t, cfg))
}

// lineTo makes a node that runs one of another site.
func lineTo(t *testing.T, m *member) *hub {
	t.Helper()
	h := &hub{member: m}
	face := h.URLs()[0]
	if h.GatewayURL() != "" {
		face = h.GatewayURL()
	}
	at, err := url.Parse(face)
	if err != nil {
		t.Fatal(err)
	}
	line := httputil.NewSingleHostReverseProxy(at)
	line.ModifyResponse = func(resp *http.Response) error {
		if spoil := h.spoil.Load(); spoil != nil {
			(*spoil)(resp.Request, resp)
		}
		resp.Body = &countedBody{resp.Body, &h.sent}
		return nil
	}
	line.FlushInterval = -1 // what comes before a cut arrives
	line.ErrorLog = log.New(io.Discard, "", 0)
	h.Server = httptest.NewServer(line)
	t.Cleanup(h.Close)
	return h
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// under gives members parents.
func under(hubs ...*hub) func(*node.Config) {
	return func(c *node.Config) {
		for _, h := range hubs {
			c.Parent = append(c.Parent, h.Server.URL)
		}
	}
}

// unreachable is a registry that these members do not reach.
func unreachable(c *node.Config) { c.Upstream = map[string]string{host: "http://127.0.0.1:1"} }

func parentsOf(m *member) []parent.Status { return m.Status().Parents }

// TestASiteCrossesTheLineOnce: a cold image that all members of a site pull at once comes from the
// parent once, and nothing comes from the registry, which the site does not reach.
func TestASiteCrossesTheLineOnce(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := pushLarge(r, "v1")
	h := newHub(t, r)
	r.rate = 16 << 20
	c := newCluster(t, r, 3, unreachable, under(h))
	pullAtOnce(t, img, 2, c.members...)
	if sent := r.sent.Load(); sent > img.size()*105/100 && !slow {
		t.Errorf("%d bytes left the registry for an image of %d", sent, img.size())
	}
	if sent := h.sent.Load(); sent > img.size()*105/100 && !slow {
		t.Errorf("%d bytes crossed the line for an image of %d", sent, img.size())
	}
	served := int64(0)
	for _, m := range c.members {
		s := m.Status()
		if served += s.Served["parent"]; s.Received != 0 {
			t.Errorf("a member has %d bytes from the registry", s.Received)
		}
	}
	if served == 0 {
		t.Error("nothing is said to have come from the parent")
	}
	// Without the line, and for those that come later, the site serves what it has.
	h.Close()
	late := c.join()
	soon(t, img, late)
	pullAtOnce(t, img, 1, late)
}

// TestChildrenDialTheirParent by QUIC and by TCP: those that it names, and those that show a token. What
// crosses the link is counted at both ends.
func TestChildrenDialTheirParent(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"} {
		t.Run(transport, func(t *testing.T) {
			r := newRegistry(t)
			img := r.push("app", "v1", random(9<<20, 6), random(5<<20, 7))
			tokens := write(t, t.TempDir(), "tokens", "token-of-this-site\n")
			h := newHub(t, r, func(c *node.Config) { c.SiteListen, c.GatewayTokenFile = []string{transport}, tokens })
			at := h.Status().Site
			if len(at) == 0 {
				t.Fatal("it does not tell where it is")
			}
			r.rate = 16 << 20
			c := newCluster(t, r, 3, unreachable, func(c *node.Config) { c.Parent, c.ParentTokenFile = at, tokens })
			pullAtOnce(t, img, 1, c.members...)
			in, out := int64(0), int64(0)
			for _, l := range h.Status().Links {
				if strings.HasPrefix(l.Link, "child ") {
					out += l.Today.Out
				}
			}
			for _, m := range c.members {
				for _, l := range m.Status().Links {
					if strings.HasPrefix(l.Link, "parent ") {
						in += l.Today.In
					}
				}
			}
			if out < img.size() || out > img.size()*105/100 && !slow || in < img.size() || in > out {
				t.Errorf("of %d bytes %d left the parent, and %d arrived", img.size(), out, in)
			}
			other := write(t, t.TempDir(), "other", "another-token-than-that\n")
			stranger := newCluster(t, r, 1, unreachable, func(c *node.Config) { c.Parent, c.ParentTokenFile = at, other }).members[0]
			if a := stranger.get("/v2/app/manifests/v1"); a.status != http.StatusServiceUnavailable && a.status != http.StatusBadGateway {
				t.Errorf("a stranger is answered %d %s", a.status, a.body)
			}
			if s := parentsOf(stranger)[0]; s.State != "down" || !strings.Contains(s.Error, "this site may not ask") {
				t.Errorf("to a stranger the parent is %+v", s)
			}
		})
	}
}

// TestACacheInFrontOfAParent: of what a parent has all of, sites get public chunks by their CID, which a cache on
// the way gives to the second site. Nothing private is at such an address.
func TestACacheInFrontOfAParent(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	public := r.push("app", "v1", random(9<<20, 6), random(5<<20, 7))
	secret := r.push("secret", "v1", random(3<<20, 8))
	r.set(func() { r.private["secret"], r.rights["mine"] = "bearer", []string{"secret"} })
	tokens := write(t, t.TempDir(), "tokens", "token-of-this-site\n")
	h := newHub(t, r, func(c *node.Config) { c.GatewayListen, c.GatewayTokenFile = "127.0.0.1:0", tokens })
	for _, err := range []error{h.pull(public, ""), h.pull(secret, "Bearer mine")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cache := newCache(t, h.Server.URL)
	var sites [2]*member
	for i := range sites {
		sites[i] = newCluster(t, r, 1, unreachable, func(c *node.Config) { c.Parent, c.ParentTokenFile = []string{cache.URL}, tokens }).members[0]
		eventually(t, "the blobs are known to be all there", func() bool { return sites[i].pull(public, "") == nil })
		if err := sites[i].pull(secret, "Bearer mine"); err != nil {
			t.Error(err)
		}
	}
	if cache.hits.Load() < 12 {
		t.Errorf("the cache gave %d chunks", cache.hits.Load())
	}
	if sent := h.sent.Load(); sent > public.size()+2*secret.size()+1<<20 {
		t.Errorf("%d bytes left the parent", sent)
	}
	for body := range cache.kept() {
		for _, p := range secret.blobs {
			if len(p) > 1<<10 && bytes.Contains([]byte(body), p[:1<<10]) {
				t.Error("the cache has what is private")
			}
		}
	}
}

// cache is a proxy that keeps what says of itself that everybody may have it.
type cache struct {
	*httptest.Server
	hits atomic.Int64
	mu   sync.Mutex
	all  map[string][]byte
}

func newCache(t *testing.T, at string) *cache {
	t.Helper()
	to, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	c := &cache{all: make(map[string][]byte)}
	through := httputil.NewSingleHostReverseProxy(to)
	through.ErrorLog = log.New(io.Discard, "", 0)
	through.ModifyResponse = func(resp *http.Response) error {
		if resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("Cache-Control"), "public") {
			return nil
		}
		p, err := io.ReadAll(resp.Body)
		resp.Body = io.NopCloser(bytes.NewReader(p))
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all[resp.Request.URL.RequestURI()] = p
		return err
	}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		c.mu.Lock()
		p, hit := c.all[q.URL.RequestURI()]
		c.mu.Unlock()
		if hit {
			c.hits.Add(1)
			_, _ = w.Write(p)
			return
		}
		through.ServeHTTP(w, q)
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *cache) kept() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]bool)
	for _, p := range c.all {
		all[string(p)] = true
	}
	return all
}

// TestAParentGivesWhatItsChildMayRead: to whom the registry gives a private image, by the child's
// credentials, and to nobody else; the challenge is the registry's.
func TestAParentGivesWhatItsChildMayRead(t *testing.T) {
	t.Parallel()
	for name, changes := range map[string][]func(*node.Config){
		"the registry is not reached":  {unreachable},
		"no registry is asked":         {func(c *node.Config) { c.ParentsOnly = true }},
		"the registry is reached, too": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			img := r.push("secret", "v1", random(3<<20, 5))
			r.set(func() { r.private["secret"], r.rights["mine"] = "bearer", []string{"secret"} })
			h := newHub(t, r)
			c := newCluster(t, r, 2, append(changes, under(h))...)
			for _, m := range c.members {
				a := m.get("/v2/secret/manifests/v1")
				if a.status != http.StatusUnauthorized || a.header.Get("Www-Authenticate") != r.challenge("secret") {
					t.Errorf("to nobody: %d %v", a.status, a.header)
				}
				if err := m.pull(img, "Bearer mine"); err != nil {
					t.Errorf("to whom it is for: %v", err)
				}
				for d := range img.blobs {
					if a := m.get(img.path(d), "Authorization", "Bearer other"); a.status == http.StatusOK {
						t.Error("another token gets a blob that is here")
					}
					if a := m.get(img.path(d)); a.status == http.StatusOK {
						t.Error("nobody gets a blob that is here")
					}
				}
			}
			h.Close()
			r.kill()
			for _, m := range c.members {
				if err := m.pull(img, "Bearer mine"); err != nil {
					t.Errorf("to whom it was given, with all lines cut: %v", err)
				}
				if a := m.get("/v2/secret/manifests/v1", "Authorization", "Bearer other"); a.status == http.StatusOK {
					t.Error("with all lines cut another token gets it")
				}
			}
		})
	}
}

// TestParentsTakeTurns: what the first does not answer the next does, then the registry; and the first
// is the first again when it is back.
func TestParentsTakeTurns(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	first, second := newHub(t, r), newHub(t, r)
	e := newCluster(t, r, 1, under(first, second)).members[0]
	pull := func(tag string, seed byte) {
		t.Helper()
		if err := e.pull(r.push("app", tag, random(2<<20, seed)), ""); err != nil {
			t.Fatal(err)
		}
	}
	pull("v1", 1)
	if first.sent.Load() < 2<<20 || second.sent.Load() > 1<<20 {
		t.Errorf("the first sent %d bytes, the second %d", first.sent.Load(), second.sent.Load())
	}
	away := func(_ *http.Request, resp *http.Response) {
		resp.StatusCode, resp.Body = http.StatusServiceUnavailable, io.NopCloser(strings.NewReader(""))
		resp.ContentLength = 0
		resp.Header.Set("Content-Length", "0")
	}
	first.spoil.Store(&away)
	pull("v2", 2)
	if second.sent.Load() < 2<<20 {
		t.Errorf("the second sent %d bytes", second.sent.Load())
	}
	second.spoil.Store(&away)
	before := e.Status().Received
	pull("v3", 3)
	if got := e.Status().Received - before; got < 2<<20 {
		t.Errorf("%d bytes came from the registry", got)
	}
	if s := parentsOf(e); s[0].State != "down" || s[1].State != "down" || s[0].Error == "" {
		t.Errorf("parents are %+v", s)
	}
	first.spoil.Store(nil)
	before, seed := first.sent.Load(), byte(4)
	eventually(t, "the first is asked again", func() bool {
		pull(fmt.Sprint("v", seed), seed)
		seed++
		return first.sent.Load() > before+2<<20
	})
	if s := parentsOf(e); s[0].State != "up" {
		t.Errorf("parents are %+v", s)
	}
}

// TestAHostileParent: wrong bytes, wrong manifests, sizes and endless answers never reach a client as if they
// were right; the parent is named and counted, no member is at fault, and the pull ends from elsewhere.
func TestAHostileParent(t *testing.T) {
	t.Parallel()
	flip := func(resp *http.Response) {
		p, _ := io.ReadAll(resp.Body)
		if len(p) > 0 {
			p[len(p)/2] ^= 1
		}
		resp.Body = io.NopCloser(bytes.NewReader(p))
	}
	is := func(q *http.Request, kind string) bool {
		return q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/"+kind+"/")
	}
	for name, spoil := range map[string]func(q *http.Request, resp *http.Response){
		"a wrong chunk": func(q *http.Request, resp *http.Response) {
			if is(q, "blobs") && resp.StatusCode == http.StatusPartialContent {
				flip(resp)
			}
		},
		"a wrong manifest": func(q *http.Request, resp *http.Response) {
			if is(q, "manifests") {
				flip(resp)
			}
		},
		"endless": func(q *http.Request, resp *http.Response) {
			if is(q, "blobs") && resp.StatusCode == http.StatusPartialContent {
				resp.Body = io.NopCloser(io.MultiReader(resp.Body, endless{}))
				resp.ContentLength = -1
				resp.Header.Del("Content-Length")
			}
		},
		"by CID, a wrong chunk": func(q *http.Request, resp *http.Response) {
			if strings.HasPrefix(q.URL.Path, "/ipfs/") {
				flip(resp)
			}
		},
		"by CID, endless": func(q *http.Request, resp *http.Response) {
			if strings.HasPrefix(q.URL.Path, "/ipfs/") {
				resp.Body = io.NopCloser(io.MultiReader(resp.Body, endless{}))
				resp.ContentLength = -1
				resp.Header.Del("Content-Length")
			}
		},
		"by CID, a wrong map": func(q *http.Request, resp *http.Response) {
			if !strings.Contains(q.URL.Path, "/_granary/map/") || resp.StatusCode != http.StatusOK {
				return
			}
			var part map[string]any
			_ = json.NewDecoder(resp.Body).Decode(&part)
			if chunks, ok := part["chunks"].([]any); ok && len(chunks) > 3 {
				chunks[1], chunks[2] = chunks[2], chunks[1]
			}
			p, _ := json.Marshal(part)
			resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(p)), int64(len(p))
			resp.Header.Set("Content-Length", fmt.Sprint(len(p)))
		},
		"by CID, no map": func(q *http.Request, resp *http.Response) {
			if strings.Contains(q.URL.Path, "/_granary/map/") && resp.StatusCode == http.StatusOK {
				withoutLength(resp, strings.NewReader(`{"size":`))
			}
		},
		"by CID, an endless map": func(q *http.Request, resp *http.Response) {
			if strings.Contains(q.URL.Path, "/_granary/map/") && resp.StatusCode == http.StatusOK {
				withoutLength(resp, io.MultiReader(resp.Body, endless{}))
			}
		},
		"a wrong size": func(q *http.Request, resp *http.Response) {
			if q.Method == http.MethodHead && strings.Contains(q.URL.Path, "/blobs/") {
				resp.Header.Set("Content-Length", "123456")
				resp.ContentLength = 123456
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			img := r.push("app", "v1", random(9<<20, 6), random(5<<20, 7))
			tokens := write(t, t.TempDir(), "tokens", "token-of-this-site\n")
			h := newHub(t, r, func(c *node.Config) { c.GatewayListen, c.GatewayTokenFile = "127.0.0.1:0", tokens })
			if strings.HasPrefix(name, "by CID") { // of what it has all of
				if err := h.pull(img, ""); err != nil {
					t.Fatal(err)
				}
			}
			h.spoil.Store(&spoil)
			c := newCluster(t, r, 3, under(h), func(c *node.Config) { c.ParentTokenFile = tokens })
			for _, m := range c.members {
				eventually(t, "the pull ends", func() bool { return m.pullToTheEnd(t, img) == nil })
			}
			named, counted := false, false
			for _, m := range c.members {
				s := m.Status()
				named = named || s.Parents[0].Faults > 0 && strings.Contains(s.Parents[0].Error, "parent ")
				counted = counted || !strings.Contains(metricsOf(t, m), `granary_corrupt_total{source="parent"} 0`)
				for _, k := range s.Cluster.Members {
					if k.State == "quarantined" || k.Strikes > 0 {
						t.Errorf("a member is at fault: %+v", k)
					}
				}
			}
			if name == "a wrong size" { // whose word on it is wrong, a manifest's or the parent's, is not known
				if named {
					t.Error("the parent is at fault")
				}
				return
			}
			if !named || !counted {
				t.Errorf("the parent is named: %v, counted: %v", named, counted)
			}
		})
	}
}

// pullToTheEnd pulls blobs as clients do, which know no more of them than their digests: what comes is hashed
// to its end.
func (m *member) pullToTheEnd(t *testing.T, img *image) error {
	t.Helper()
	if a := m.get("/v2/" + img.repository + "/manifests/" + img.tag); a.err != nil || digest.FromBytes(a.body) != img.top {
		return fmt.Errorf("manifest: %d %v", a.status, a.err)
	}
	for d := range img.blobs {
		if a := m.get(img.path(d)); a.err != nil || a.status != http.StatusOK {
			return fmt.Errorf("blob: %d %v", a.status, a.err)
		} else if got := digest.FromBytes(a.body); got != d {
			t.Errorf("a client was given all of a blob that is wrong: %s for %s", got, d)
		}
	}
	return nil
}

// endless is a body without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func metricsOf(t *testing.T, m *member) string {
	t.Helper()
	resp, err := http.Get(m.AdminURL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	p, err := readAll(resp)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// TestSitesFindEachOther: of a network, who has a public blob is asked for it, and the registry is not. What is
// private is told to nobody.
func TestSitesFindEachOther(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	secret := r.push("secret", "v1", random(5<<20, 8))
	r.set(func() { r.private["secret"], r.rights["mine"] = "bearer", []string{"secret"} })
	tokens := write(t, t.TempDir(), "tokens", "token-of-these-sites\n")
	var at []string
	site := func() *member {
		m := newHub(t, r, func(c *node.Config) {
			c.SiteNetwork, c.SiteListen, c.SiteJoin = "test", []string{"/ip4/127.0.0.1/tcp/0"}, at
			c.GatewayTokenFile, c.ParentTokenFile = tokens, tokens
		}).member
		at = append(at, m.Status().Site...)
		return m
	}
	first, second := site(), site()
	if err := first.pull(secret, "Bearer mine"); err != nil {
		t.Fatal(err)
	}
	seed := byte(6)
	eventually(t, "who has it is found", func() bool {
		img := r.push("app", fmt.Sprint("v", seed), random(9<<20, seed))
		seed++
		if err := first.pull(img, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond) // it tells others, and the other looks
		second.get(img.path(img.order[1]), "Range", "bytes=0-2097151")
		time.Sleep(time.Second)
		if err := second.pull(img, ""); err != nil {
			t.Fatal(err)
		}
		return second.Status().Served["parent"] > 0
	})
	sent := r.sent.Load()
	if err := second.pull(secret, "Bearer mine"); err != nil {
		t.Fatal(err)
	}
	if more := r.sent.Load() - sent; more < secret.size()-1<<10 {
		t.Errorf("%d bytes of a private image came from the registry, the others were found", more)
	}
	for _, l := range second.Status().Parents {
		if !l.Found {
			t.Errorf("%+v", l)
		}
	}
}
