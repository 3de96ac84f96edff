package proxy_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// stack is a node's parts over an origin.
type stack struct {
	*origin
	upstream *httptest.Server
	registry *proxy.Registry
	requests atomic.Int64
	url      string
	mu       sync.Mutex
	reported []error
}

func (s *stack) report(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reported = append(s.reported, err)
}

// awaitRequests waits until n requests have come, and a little for the last of
// them to come as far as they can.
func (s *stack) awaitRequests(n int64) {
	for s.requests.Load() < n {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond)
}

func (s *stack) reports() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reported)
}

func newStack(t *testing.T, o *origin, onDisk bool, change ...func(*proxy.Config)) *stack {
	t.Helper()
	return buildStack(t, &stack{origin: o, upstream: httptest.NewServer(o)}, "", onDisk, change...)
}

// newStackAt is newStack over an upstream elsewhere.
func newStackAt(t *testing.T, o *origin, url string) *stack {
	t.Helper()
	return buildStack(t, &stack{origin: o, upstream: httptest.NewServer(o)}, url, false)
}

func buildStack(t *testing.T, s *stack, url string, onDisk bool, change ...func(*proxy.Config)) *stack {
	t.Helper()
	t.Cleanup(s.upstream.Close)
	memory, disk, known := chunkstore.NewMemory(4<<20), (*chunkstore.Disk)(nil), catalog.NewMemory()
	if onDisk {
		dir := t.TempDir()
		var err error
		if disk, err = chunkstore.Open(dir, chunkstore.Config{SyncEvery: 20 * time.Millisecond, Report: s.report}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = disk.Close() })
		if known, err = catalog.Open(filepath.Join(dir, "catalog.db"), s.report); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = known.Close() })
	}
	client, err := upstream.New(upstream.Config{URL: cmp.Or(url, s.upstream.URL), Pseudonym: "test-node"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := proxy.Config{
		DefaultHost: "origin.test",
		Upstream: func(r ref.Repository, authorization string) (proxy.Upstream, error) {
			return client.Repository(r.Name).As(authorization), nil
		},
		Store:   chunkstore.NewStack(memory, disk),
		Catalog: known,
		Window:  8 << 20,
		Budget:  chunk.NewBudget(32 << 20),
		Report:  s.report,
	}
	for _, c := range change {
		c(&cfg)
	}
	s.registry = proxy.NewRegistry(cfg)
	handler := proxy.NewHandler(s.registry, "test-node", slog.New(slog.DiscardHandler), nil)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	s.url = front.URL
	return s
}

// stacks runs a test over each composed stack.
func stacks(t *testing.T, test func(t *testing.T, o *origin, onDisk bool)) {
	for _, onDisk := range []bool{false, true} {
		for _, kind := range []struct {
			name                 string
			noRange, noReferrers bool
		}{{"whole registry", false, false}, {"registry without ranges", true, false}, {"registry without referrers", false, true}} {
			t.Run(fmt.Sprintf("%s, disk %v", kind.name, onDisk), func(t *testing.T) {
				o := newOrigin()
				o.noRange, o.noReferrers = kind.noRange, kind.noReferrers
				test(t, o, onDisk)
			})
		}
	}
}

func random(n int, seed uint64) []byte {
	var key [32]byte
	key[0] = byte(seed)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

func (s *stack) do(t *testing.T, method, path string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		resp.StatusCode = -resp.StatusCode // ended early
	}
	return resp, body
}

func code(body []byte) string {
	var e struct{ Errors []struct{ Code string } }
	if json.Unmarshal(body, &e) != nil || len(e.Errors) != 1 {
		return "not an error: " + string(body)
	}
	return e.Errors[0].Code
}

func TestPullRules(t *testing.T) {
	stacks(t, func(t *testing.T, o *origin, onDisk bool) {
		layer, small := random(5<<20+3, 1), random(1000, 2)
		d := o.add("app", layer, small)
		s := newStack(t, o, onDisk)
		manifest := o.manifests["app:v1"]
		for _, reference := range []string{"v1", string(d)} {
			for _, method := range []string{http.MethodHead, http.MethodGet, http.MethodGet} {
				resp, body := s.do(t, method, "/v2/app/manifests/"+reference)
				if resp.StatusCode != http.StatusOK || resp.Header.Get("Docker-Content-Digest") != string(d) ||
					resp.Header.Get("Content-Type") != manifestType || resp.ContentLength != int64(len(manifest)) {
					t.Errorf("%s %s: %s %v", method, reference, resp.Status, resp.Header)
				}
				if method == http.MethodGet && !bytes.Equal(body, manifest) {
					t.Errorf("GET %s: not the bytes that were pushed: %s", reference, body)
				}
			}
		}
		for _, b := range [][]byte{layer, small} {
			path := "/v2/app/blobs/" + string(digest.FromBytes(b))
			for range 2 {
				resp, body := s.do(t, http.MethodGet, path, "Accept-Encoding", "gzip")
				if resp.StatusCode != http.StatusOK || !bytes.Equal(body, b) || resp.Header.Get("Content-Encoding") != "" ||
					resp.Header.Get("Docker-Content-Digest") != string(digest.FromBytes(b)) || resp.Header.Get("ETag") != `"`+string(digest.FromBytes(b))+`"` {
					t.Errorf("GET blob: %s, %d bytes, %v", resp.Status, len(body), resp.Header)
				}
			}
			if resp, _ := s.do(t, http.MethodHead, path); resp.ContentLength != int64(len(b)) {
				t.Errorf("HEAD blob: %v", resp.Header)
			}
			if resp, body := s.do(t, http.MethodGet, path, "Range", "bytes=10-19"); resp.StatusCode != http.StatusPartialContent || !bytes.Equal(body, b[10:20]) {
				t.Errorf("range: %s, %d bytes", resp.Status, len(body))
			}
			if resp, body := s.do(t, http.MethodGet, path, "Range", "bytes=500-"); !bytes.Equal(body, b[500:]) {
				t.Errorf("open range: %s, %d bytes", resp.Status, len(body))
			}
			if resp, _ := s.do(t, http.MethodGet, path, "If-None-Match", `"`+string(digest.FromBytes(b))+`"`); resp.StatusCode != http.StatusNotModified {
				t.Errorf("If-None-Match: %s", resp.Status)
			}
		}
		if s.reports() != 0 {
			t.Errorf("reported: %v", s.reported)
		}
	})
}

// TestAnAnswerSaysWhereItCameFrom for each chunk that is asked for alone.
func TestAnAnswerSaysWhereItCameFrom(t *testing.T) {
	stacks(t, func(t *testing.T, o *origin, onDisk bool) {
		layer := random(2*chunk.Size+1000, 1)
		o.add("app", layer)
		s := newStack(t, o, onDisk)
		path := "/v2/app/blobs/" + string(digest.FromBytes(layer))
		for _, r := range []string{"bytes=0-1048575", "bytes=2097152-2098151"} { // a chunk, and a small part
			for i, want := range []string{"upstream", "memory disk"} {
				resp, _ := s.do(t, http.MethodGet, path, "Range", r)
				if got := resp.Header.Get(proxy.SourceHeader); got == "" || !strings.Contains(want, got) {
					t.Errorf("%s, request %d: from %q, want %s", r, i, got, want)
				}
			}
		}
		if resp, _ := s.do(t, http.MethodHead, path); resp.Header.Get(proxy.SourceHeader) != "" {
			t.Errorf("HEAD: from %q", resp.Header.Get(proxy.SourceHeader))
		}
	})
}

func TestAnswersToBadRequests(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	s := newStack(t, o, true)
	absent := string(digest.FromString("absent"))
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v2/app/manifests/none", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/app/manifests/" + absent, 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/app/blobs/" + absent, 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/none/blobs/" + absent, 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/app/blobs/sha256:short", 400, "DIGEST_INVALID"},
		{"GET", "/v2/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "UNSUPPORTED"},
		{"GET", "/v2/APP/manifests/v1", 400, "NAME_INVALID"},
		{"GET", "/v2/app/manifests/v1?ns=a&ns=b", 400, "NAME_INVALID"},
		{"GET", "/v2/app/nonsense", 404, "NAME_UNKNOWN"},
		{"GET", "/other", 404, "NAME_UNKNOWN"},
		{"POST", "/v2/app/blobs/uploads/", 405, "UNSUPPORTED"},
		{"PUT", "/v2/app/manifests/v1", 405, "UNSUPPORTED"},
		{"DELETE", "/v2/app/manifests/v1", 405, "UNSUPPORTED"},
	} {
		resp, body := s.do(t, c.method, c.path)
		if resp.StatusCode != c.status || code(body) != c.code {
			t.Errorf("%s %s: %s %s, want %d %s", c.method, c.path, resp.Status, code(body), c.status, c.code)
		}
	}
	if resp, _ := s.do(t, "GET", "/v2/"); resp.StatusCode != 200 {
		t.Errorf("GET /v2/: %s", resp.Status)
	}
	if resp, _ := s.do(t, "GET", "/v2/app/manifests/v1?ns=origin.test"); resp.Header.Get("OCI-Namespace") != "origin.test" {
		t.Errorf("ns: %v", resp.Header)
	}
}

func TestTwoClientsMakeOneFetch(t *testing.T) {
	stacks(t, func(t *testing.T, o *origin, onDisk bool) {
		layer := random(8<<20, 3)
		o.add("app", layer)
		o.gate = make(chan struct{})
		s := newStack(t, o, onDisk)
		path := s.url + "/v2/app/blobs/" + string(digest.FromBytes(layer))
		first, err := http.NewRequest(http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		leave := make(chan struct{})
		first.Cancel = leave //nolint:staticcheck // a client that goes away without a context's help
		var wg sync.WaitGroup
		wg.Go(func() {
			if resp, err := http.DefaultClient.Do(first); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
		for o.gets.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		got := make(chan []byte)
		go func() {
			resp, err := http.Get(path)
			if err != nil {
				got <- nil
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			got <- body
		}()
		time.Sleep(50 * time.Millisecond) // for the second to have come to wait
		close(leave)
		wg.Wait()
		close(o.gate)
		if body := <-got; !bytes.Equal(body, layer) {
			t.Errorf("the client that stayed got %d of %d bytes", len(body), len(layer))
		}
		if sent := o.sent.Load(); sent > int64(len(layer))*21/20 {
			t.Errorf("the upstream sent %d bytes for a blob of %d", sent, len(layer))
		}
	})
}

func TestACutIsResumed(t *testing.T) {
	o := newOrigin()
	layer := random(9<<20, 4)
	o.add("app", layer)
	o.cutAt = 1<<20 + 100
	s := newStack(t, o, true)
	if resp, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(digest.FromBytes(layer))); !bytes.Equal(body, layer) {
		t.Errorf("%s, %d of %d bytes", resp.Status, len(body), len(layer))
	}
	if sent := o.sent.Load(); sent > int64(len(layer))*3/2 {
		t.Errorf("the upstream sent %d bytes for a blob of %d", sent, len(layer))
	}
}

func TestWrongBytesNeverEndCleanly(t *testing.T) {
	stacks(t, func(t *testing.T, o *origin, onDisk bool) {
		for _, size := range []int{900, 5 << 20} {
			right := random(size, byte64(size))
			o.add("app", right)
			d := string(digest.FromBytes(right))
			wrong := bytes.Clone(right)
			wrong[size/2] ^= 1
			o.mu.Lock()
			o.blobs["app@"+d] = wrong
			o.mu.Unlock()
			s := newStack(t, o, onDisk)
			for _, rang := range []string{"", "bytes=0-", "bytes=100-"} {
				header := []string{}
				if rang != "" {
					header = []string{"Range", rang}
				}
				if resp, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+d, header...); resp.StatusCode == 200 || resp.StatusCode == 206 {
					t.Errorf("%d bytes, Range %q: a clean end after %d bytes", size, rang, len(body))
				}
			}
			o.mu.Lock()
			o.blobs["app@"+d] = right
			o.mu.Unlock()
			if resp, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+d); !bytes.Equal(body, right) {
				t.Errorf("%d bytes: not fetched anew: %s, %d bytes", size, resp.Status, len(body))
			}
		}
	})
}

func byte64(n int) uint64 { return uint64(n % 251) }

// TestAnUpstreamThatTakesNoMoreQuestions is as good as one that is gone, for what is here; for what is not its answer is passed on.
func TestAnUpstreamThatTakesNoMoreQuestions(t *testing.T) {
	o := newOrigin()
	layer := random(3<<20, 5)
	d := o.add("secret", layer)
	o.tokens["right"] = "secret"
	o.add("later", random(1000, 6))
	s := newStack(t, o, true, func(c *proxy.Config) { c.Access.GrantFor = time.Nanosecond })
	paths := []string{"/v2/secret/manifests/v1", "/v2/secret/manifests/" + string(d), "/v2/secret/blobs/" + string(digest.FromBytes(layer))}
	for _, path := range paths {
		s.wantStatus(t, http.StatusOK, path, "Bearer right")
	}
	o.set(func() {
		o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
	})
	for _, path := range paths {
		s.wantStatus(t, http.StatusOK, path, "Bearer right")
		s.wantStatus(t, http.StatusServiceUnavailable, path, "")
		s.wantStatus(t, http.StatusServiceUnavailable, path, "Bearer wrong")
	}
	s.wantStatus(t, http.StatusTooManyRequests, "/v2/later/manifests/v1", "")
}

func TestADeadUpstreamIsNotNoticed(t *testing.T) {
	o := newOrigin()
	layer := random(3<<20, 5)
	d := o.add("app", layer)
	other := o.add("later", random(2<<20, 6))
	s := newStack(t, o, true)
	s.do(t, http.MethodGet, "/v2/app/manifests/v1")
	s.do(t, http.MethodGet, "/v2/app/blobs/"+string(digest.FromBytes(layer)))
	s.upstream.Close()
	resp, _ := s.do(t, http.MethodGet, "/v2/app/manifests/v1")
	if resp.StatusCode != 200 || resp.Header.Get("Docker-Content-Digest") != string(d) || !strings.HasPrefix(resp.Header.Get("Warning"), `299 - "stale: `) {
		t.Errorf("tag: %s %v", resp.Status, resp.Header)
	}
	if resp, _ := s.do(t, http.MethodGet, "/v2/app/manifests/"+string(d)); resp.StatusCode != 200 || resp.Header.Get("Warning") != "" {
		t.Errorf("digest: %s %v", resp.Status, resp.Header)
	}
	if resp, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(digest.FromBytes(layer))); !bytes.Equal(body, layer) {
		t.Errorf("blob: %s", resp.Status)
	}
	for _, path := range []string{"/v2/later/manifests/v1", "/v2/later/manifests/" + string(other), "/v2/later/blobs/" + string(digest.FromString("x"))} {
		if resp, body := s.do(t, http.MethodGet, path); resp.StatusCode != 502 || code(body) != "UNAVAILABLE" || !strings.Contains(string(body), "refused") {
			t.Errorf("%s: %s %s, want 502 that names the cause", path, resp.Status, body)
		}
	}
}

func TestPrivateIsTheUpstreamsToSay(t *testing.T) {
	o := newOrigin()
	layer := random(100, 7)
	d := o.add("secret", layer)
	s := newStack(t, o, true)
	paths := []string{"/v2/secret/manifests/v1", "/v2/secret/manifests/" + string(d), "/v2/secret/blobs/" + string(digest.FromBytes(layer))}
	for _, p := range paths {
		if resp, _ := s.do(t, http.MethodGet, p); resp.StatusCode != 200 {
			t.Fatalf("%s while public: %s", p, resp.Status)
		}
	}
	o.mu.Lock()
	o.private["secret"] = "bearer"
	o.mu.Unlock()
	for _, p := range paths { // the tag is asked for first, which tells the node
		resp, body := s.do(t, http.MethodGet, p)
		if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != o.challenge(s.upstream.Listener.Addr().String(), "secret") || code(body) != "UNAUTHORIZED" {
			t.Errorf("%s: %s %v %s", p, resp.Status, resp.Header, body)
		}
	}
	s.upstream.Close()
	for _, p := range paths {
		if resp, _ := s.do(t, http.MethodGet, p); resp.StatusCode == 200 {
			t.Errorf("%s: served from the cache although it is private", p)
		}
	}
}

func TestABlobIsServedOnlyWhereItBelongs(t *testing.T) {
	o := newOrigin()
	layer := random(100, 8)
	o.add("app", layer)
	o.add("other", random(50, 9))
	s := newStack(t, o, true)
	d := string(digest.FromBytes(layer))
	if resp, _ := s.do(t, http.MethodGet, "/v2/app/blobs/"+d); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	if resp, body := s.do(t, http.MethodGet, "/v2/other/blobs/"+d); resp.StatusCode != 404 || code(body) != "BLOB_UNKNOWN" {
		t.Errorf("under another repository: %s %s", resp.Status, body)
	}
}

// TestAnOpenRangeIsFetchedOnDemand stops reading an open-ended range early. What
// the client has not come to is not fetched, but for what the sockets hold.
func TestAnOpenRangeIsFetchedOnDemand(t *testing.T) {
	o := newOrigin()
	layer := random(64<<20, 10)
	o.add("app", layer)
	s := newStack(t, o, true)
	req, err := http.NewRequest(http.MethodGet, s.url+"/v2/app/blobs/"+string(digest.FromBytes(layer)), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=0-")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	for last, still := int64(-1), 0; still < 20; still++ { // until no more is fetched
		if n := o.sent.Load(); n != last {
			last, still = n, 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	if sent := o.sent.Load(); sent > 24<<20 {
		t.Errorf("%d bytes were fetched for a client that read 1 MiB", sent)
	}
}

func TestOneQuestionForManyClients(t *testing.T) {
	o := newOrigin()
	o.add("app", random(10, 1))
	s := newStack(t, o, true)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			resp, err := http.Head(s.url + "/v2/app/manifests/v1")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Error(resp.Status)
			}
		})
	}
	wg.Wait()
	if n := o.heads.Load(); n > 60 {
		t.Errorf("%d questions were asked of the upstream for 100 clients at once", n)
	}
}
