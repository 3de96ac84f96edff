package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// smallRegistry has one repository, app, with one image, v1, of one layer.
type smallRegistry struct {
	*httptest.Server
	layer digest.Digest

	mu       sync.Mutex
	content  map[string][]byte // by path below /v2/app/
	requests int
	redirect string // where blobs are, or ""
	realm    string // of a challenge that everything gets, or ""
}

const layerSize = 5<<20 + 7

func newSmallRegistry(t *testing.T) *smallRegistry {
	t.Helper()
	layer := make([]byte, layerSize)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(layer)
	r := &smallRegistry{layer: digest.FromBytes(layer), content: make(map[string][]byte)}
	r.content["blobs/"+string(r.layer)] = layer
	r.tag("v1", "")
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

// tag makes a manifest that differs by a note.
func (r *smallRegistry) tag(tag, note string) digest.Digest {
	m := fmt.Appendf(nil, `{"schemaVersion":2,"note":%q,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, note, r.layer, layerSize)
	d := digest.FromBytes(m)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.content["manifests/"+tag], r.content["manifests/"+string(d)] = m, m
	return d
}

func (r *smallRegistry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.requests++
	p, redirect, realm := r.content[strings.TrimPrefix(q.URL.Path, "/v2/app/")], r.redirect, r.realm
	r.mu.Unlock()
	switch {
	case realm != "":
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", realm))
		w.WriteHeader(http.StatusUnauthorized)
	case q.URL.Path == "/v2/":
	case p == nil:
		w.WriteHeader(http.StatusNotFound)
	case redirect != "" && strings.Contains(q.URL.Path, "/blobs/"):
		http.Redirect(w, q, redirect+q.URL.Path, http.StatusTemporaryRedirect)
	default:
		if strings.Contains(q.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(p)))
		}
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(p))
	}
}

func (r *smallRegistry) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *smallRegistry) address() string { return strings.TrimPrefix(r.URL, "http://") }

func fetch(t *testing.T, url string) (*http.Response, []byte) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, p
}

func TestInvalidate(t *testing.T) {
	r := newSmallRegistry(t)
	n := testNode(t, node.Config{DataConfig: node.DataConfig{
		DataDir: t.TempDir(), Upstream: map[string]string{"registry.test": r.URL}, DefaultUpstream: "registry.test", TagPolicy: []string{"registry.test/*=pin"},
	}})
	served := func() string {
		resp, _ := fetch(t, n.URLs()[0]+"/v2/app/manifests/v1")
		return resp.Header.Get("Docker-Content-Digest")
	}
	old := served()
	now := r.tag("v1", "new")
	if got := served(); got != old {
		t.Errorf("a pinned tag moved to %s", got)
	}
	for _, name := range []string{"registry.test/app:v1", "registry.test/app", "app"} {
		status, out, errs := granary(t, "invalidate", "--node", n.AdminURL(), name)
		if status != 0 || out != name+": 1 tags forgotten\n" {
			t.Errorf("invalidate %s: %d, %s%s", name, status, out, errs)
		}
		if got := served(); got != string(now) {
			t.Errorf("after invalidate %s: %s", name, got)
		}
		now = r.tag("v1", name)
	}
	for _, name := range []string{"registry.test/app@" + string(now), "registry.test/APP", ""} {
		if status, _, errs := granary(t, "invalidate", "--node", n.AdminURL(), name); status != 1 || errs == "" {
			t.Errorf("invalidate %q: %d, %s", name, status, errs)
		}
	}
}

// damage flips bytes of a stored blob.
func damage(t *testing.T, dir string, d digest.Digest) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "blobs/sha256", d.Encoded()[:2], d.Encoded()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), 3<<20); err != nil {
		t.Fatal(err)
	}
}

func TestFsckRepairs(t *testing.T) {
	r := newSmallRegistry(t)
	dir := t.TempDir()
	cfg := node.DataConfig{DataDir: dir, Upstream: map[string]string{"registry.test": r.URL}, DefaultUpstream: "registry.test"}
	n := testNode(t, node.Config{DataConfig: cfg})
	fetch(t, n.URLs()[0]+"/v2/app/manifests/v1")
	fetch(t, n.URLs()[0]+"/v2/app/blobs/"+string(r.layer))
	if status, out, errs := granary(t, "fsck", "--data-dir", dir); status != 0 {
		t.Fatalf("fsck: %d, %s%s", status, out, errs)
	}
	damage(t, dir, r.layer)
	status, out, errs := granary(t, "fsck", "--data-dir", dir, "--repair")
	if status != 0 || !strings.Contains(out, "1 wrong and dropped") || !strings.Contains(out, "1 of 1 damaged blobs fetched again") {
		t.Errorf("fsck --repair: %d, %s%s", status, out, errs)
	}
	if status, out, _ := granary(t, "fsck", "--data-dir", dir); status != 0 || !strings.Contains(out, " 0 wrong") {
		t.Errorf("fsck after the repair: %d, %s", status, out)
	}
	damage(t, dir, r.layer)
	if status, out, errs := granary(t, "fsck", "--data-dir", dir, "--json"); status != 1 || !strings.Contains(out, `"damaged":1,"repaired":0`) || !strings.Contains(errs, "--repair") {
		t.Errorf("fsck: %d, %s%s", status, out, errs)
	}
	r.Close()
	if _, p := fetch(t, n.URLs()[0]+"/v2/app/manifests/v1"); len(p) == 0 {
		t.Error("the manifest is gone")
	}
}

// TestFsckRepairsWithoutANode makes one for the time it takes.
func TestFsckRepairsWithoutANode(t *testing.T) {
	r := newSmallRegistry(t)
	dir := t.TempDir()
	args := []string{"--data-dir", dir, "--upstream", "registry.test=" + r.URL, "--default-upstream", "registry.test"}
	if status, out, errs := granary(t, append([]string{"pull", "app:v1", "--node", "http://127.0.0.1:1"}, args...)...); status != 0 {
		t.Fatalf("pull: %d, %s%s", status, out, errs)
	}
	damage(t, dir, r.layer)
	if status, out, errs := granary(t, append([]string{"fsck", "--repair"}, args...)...); status != 0 || !strings.Contains(out, "1 of 1 damaged blobs fetched again") {
		t.Errorf("fsck --repair: %d, %s%s", status, out, errs)
	}
	if status, out, errs := granary(t, append([]string{"gc"}, args...)...); status != 0 || out != "0 B freed\n" {
		t.Errorf("gc: %d, %s%s", status, out, errs)
	}
	if status, out, errs := granary(t, append([]string{"gc", "--all"}, args...)...); status != 0 || !strings.HasPrefix(out, "5.0 MiB freed") {
		t.Errorf("gc --all: %d, %s%s", status, out, errs)
	}
}

func TestGCThroughANode(t *testing.T) {
	r := newSmallRegistry(t)
	dir := t.TempDir()
	n := testNode(t, node.Config{DataConfig: node.DataConfig{DataDir: dir, Upstream: map[string]string{"registry.test": r.URL}, DefaultUpstream: "registry.test"}})
	fetch(t, n.URLs()[0]+"/v2/app/manifests/v1")
	fetch(t, n.URLs()[0]+"/v2/app/blobs/"+string(r.layer))
	if status, out, errs := granary(t, "gc", "--data-dir", dir, "--keep", "1MiB"); status != 0 || !strings.HasPrefix(out, "5.0 MiB freed") {
		t.Errorf("gc: %d, %s%s", status, out, errs)
	}
	if s := n.Status(); s.Store.Bytes > 1<<20 {
		t.Errorf("%d bytes are kept", s.Store.Bytes)
	}
	if _, p := fetch(t, n.URLs()[0]+"/v2/app/blobs/"+string(r.layer)); digest.FromBytes(p) != r.layer {
		t.Error("what was evicted is not fetched again")
	}
}

// TestTheNodeIsNoOpenProxy: it reads from registries that settings allow, at
// addresses that are public or that settings name.
func TestTheNodeIsNoOpenProxy(t *testing.T) {
	r, other := newSmallRegistry(t), newSmallRegistry(t)
	n := testNode(t, node.Config{DataConfig: node.DataConfig{
		DataDir: t.TempDir(), Upstream: map[string]string{"registry.test": r.URL, "bad.registry.test": r.URL}, DefaultUpstream: "registry.test",
		Registries: []string{"registry.test", "*.registry.test", "localhost:*", "127.0.0.1:*", "!bad.*"},
	}})
	_, port, _ := strings.Cut(other.address(), ":")
	blob := "app/blobs/" + string(r.layer)
	check := func(path string, want int, code string) {
		t.Helper()
		resp, body := fetch(t, n.URLs()[0]+"/v2/"+path)
		var e struct{ Errors []struct{ Code string } }
		_ = json.Unmarshal(body, &e)
		if resp.StatusCode != want || code != "" && (len(e.Errors) != 1 || e.Errors[0].Code != code) {
			t.Errorf("%s: %s %.300s, want %d %s", path, resp.Status, body, want, code)
		}
	}
	check("app/manifests/v1", 200, "")
	for _, path := range []string{
		"elsewhere.example/app/manifests/v1", "app/manifests/v1?ns=docker.io", "bad.registry.test/app/manifests/v1", "bad.registry.test/app/tags/list",
		"bad.registry.test/" + blob, "127.0.0.1:" + port + "/app/manifests/v1", "app/manifests/v1?ns=localhost:" + port, "app/tags/list?ns=127.0.0.1:" + port,
	} {
		check(path, 403, "DENIED")
	}
	r.set(func() { r.redirect = other.URL })
	check(blob, 403, "DENIED")
	r.set(func() { r.redirect, r.realm = "", other.URL+"/token" })
	check("app/manifests/v1", 401, "UNAUTHORIZED") // the challenge is relayed, and not followed
	if other.requests > 0 {
		t.Errorf("%d requests were made to what nothing names", other.requests)
	}
}

// TestANodeThatIsItsOwnUpstream sees that.
func TestANodeThatIsItsOwnUpstream(t *testing.T) {
	var n *node.Node
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		req, _ := http.NewRequestWithContext(q.Context(), q.Method, n.URLs()[0]+q.URL.Path, nil)
		req.Header = q.Header
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	t.Cleanup(front.Close)
	n = testNode(t, node.Config{DataConfig: node.DataConfig{DataDir: t.TempDir(), Upstream: map[string]string{"registry.test": front.URL}, DefaultUpstream: "registry.test"}})
	if resp, body := fetch(t, n.URLs()[0]+"/v2/app/manifests/v1"); resp.StatusCode != http.StatusLoopDetected {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// TestMirrorsAreTriedInOrder through the settings, from a list in the file.
func TestMirrorsAreTriedInOrder(t *testing.T) {
	r := newSmallRegistry(t)
	gone := httptest.NewServer(nil)
	gone.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "granary.yaml")
	text := fmt.Sprintf("upstream:\n  registry.test:\n    - %s\n    - %s\n  docker.io: https://mirror.example,https://registry-1.docker.io\ndata-dir: %s\n", gone.URL, r.URL, dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, errs := granary(t, "--config", file, "pull", "registry.test/app:v1", "--node", "http://127.0.0.1:1"); status != 0 {
		t.Errorf("pull: %d, %s%s", status, out, errs)
	}
}

// TestCredentialHelpers: the node's own credentials come from a program that
// Docker's configuration names.
func TestCredentialHelpers(t *testing.T) {
	r := newSmallRegistry(t)
	var mu sync.Mutex
	accepted := false
	locked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		user, password, _ := q.BasicAuth()
		if user != "robot" || password != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="locked"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mu.Lock()
		accepted = true
		mu.Unlock()
		r.ServeHTTP(w, q)
	}))
	t.Cleanup(locked.Close)
	dir := t.TempDir()
	helper := "#!/bin/sh\nread server\n[ \"$1 $server\" = 'get registry.test' ] || { echo 'credentials not found in native keychain'; exit 1; }\n" +
		`echo '{"ServerURL":"registry.test","Username":"robot","Secret":"s3cret"}'` + "\n"
	for name, text := range map[string]string{"docker-credential-test": helper, "config.json": `{"credHelpers":{"registry.test":"test"}}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	cfg := node.DataConfig{
		DataDir: t.TempDir(), Upstream: map[string]string{"registry.test": locked.URL, "other.test": locked.URL},
		DockerConfig: filepath.Join(dir, "config.json"), NodeCredentials: map[string]string{"*": "share", "other.*": "off"},
	}
	n := testNode(t, node.Config{DataConfig: cfg})
	if resp, body := fetch(t, n.URLs()[0]+"/v2/app/manifests/v1"); resp.StatusCode != 200 || !accepted {
		t.Errorf("%s %s", resp.Status, body)
	}
	if resp, _ := fetch(t, n.URLs()[0]+"/v2/other.test/app/manifests/v1"); resp.StatusCode != 401 {
		t.Errorf("a registry whose credentials are not shared: %s", resp.Status)
	}
}

// TestUpstreamsThroughAProxy runs the program with the usual environment: HTTP
// through a proxy, and HTTPS through a tunnel that it makes.
func TestUpstreamsThroughAProxy(t *testing.T) {
	if upstream := os.Getenv("GRANARY_TEST_PROXIED"); upstream != "" {
		args := []string{"pull", "registry.test/app:v1", "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir(), "--upstream", "registry.test=" + upstream}
		if ca := os.Getenv("GRANARY_TEST_CA"); ca != "" {
			args = append(args, "--upstream-ca-file", "registry.test="+ca)
		}
		if status, out, errs := granary(t, args...); status != 0 {
			t.Errorf("pull: %d, %s%s", status, out, errs)
		}
		return
	}
	r := newSmallRegistry(t)
	secure := httptest.NewTLSServer(r) // its certificate is for example.com
	t.Cleanup(secure.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		asked = append(asked, q.Method+" "+q.Host)
		mu.Unlock()
		if q.Method == http.MethodConnect {
			tunnel(t, w, secure.Listener.Addr().String())
			return
		}
		r.ServeHTTP(w, q)
	}))
	t.Cleanup(proxy.Close)
	for upstream, want := range map[string]string{"http://registry.example:8080": "HEAD registry.example:8080", "https://example.com": "CONNECT example.com:443"} {
		mu.Lock()
		asked = nil
		mu.Unlock()
		again := exec.Command(os.Args[0], "-test.run", "^TestUpstreamsThroughAProxy$")
		again.Env = append(os.Environ(), "GRANARY_TEST_PROXIED="+upstream, "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL, "NO_PROXY=")
		if strings.HasPrefix(upstream, "https") {
			again.Env = append(again.Env, "GRANARY_TEST_CA="+ca)
		}
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", upstream, err, out)
		}
		mu.Lock()
		if len(asked) == 0 || asked[0] != want {
			t.Errorf("%s: the proxy was asked for %v", upstream, asked)
		}
		mu.Unlock()
	}
}

// tunnel makes a connection of what it is asked by.
func tunnel(t *testing.T, w http.ResponseWriter, address string) {
	far, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer far.Close()
	w.WriteHeader(http.StatusOK)
	near, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer near.Close()
	go func() { _, _ = io.Copy(far, near) }()
	_, _ = io.Copy(near, far)
}

// TestASlowHeader: a client that never ends its header is cut off.
func TestASlowHeader(t *testing.T) {
	n := testNode(t, node.Config{})
	conn, err := net.Dial("tcp", strings.TrimPrefix(n.URLs()[0], "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ")
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if p, err := io.ReadAll(conn); err != nil {
		t.Errorf("not cut off: %q, %v", p, err)
	}
}

// TestAWebPageCommandsNothing: a browser tells where a request comes from.
func TestAWebPageCommandsNothing(t *testing.T) {
	n := testNode(t, node.Config{})
	req, err := http.NewRequest(http.MethodPost, n.AdminURL()+"/api/v1/gc?keep=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://evil.example")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("%s", resp.Status)
	}
}
