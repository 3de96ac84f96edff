package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

func TestNewRefuses(t *testing.T) {
	for url, want := range map[string]string{
		"":                              "scheme",
		"registry.example":              "scheme",
		"ftp://registry.example":        "scheme",
		"file:///etc":                   "scheme",
		"http://":                       "host",
		"http://:5000":                  "host",
		"https:registry.example":        "host",
		"https://ann:hunter2@example":   "credentials",
		"https://registry.example?a=b":  "query",
		"https://registry.example?":     "query",
		"https://registry.example#x":    "fragment",
		"https://registry.example/#":    "fragment",
		"https://registry.example/a/..": "path",
		"https://registry.example/a%2f": "path",
		"https://reg:hunter2":           "malformed",
		"http://[::1":                   "malformed",
	} {
		_, err := New(Config{URL: url})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%q): %v, want an error about %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q) tells the password: %v", url, err)
		}
	}
}

// what is asked of a registry is below its base, whatever form that has
func TestBaseURL(t *testing.T) {
	var path string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { path = r.URL.Path }))
	defer server.Close()
	for suffix, want := range map[string]string{
		"":          "/v2/library/app/tags/list",
		"/":         "/v2/library/app/tags/list",
		"/mirror":   "/mirror/v2/library/app/tags/list",
		"/a/b:1/":   "/a/b:1/v2/library/app/tags/list",
		"/mirror//": "/mirror/v2/library/app/tags/list",
	} {
		resp, err := registry(t, server.URL+suffix).Repository("library/app").Get(t.Context(), "tags/list", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if path != want {
			t.Errorf("with base path %q the request is for %q, want %q", suffix, path, want)
		}
	}
}

func TestPathsStayInTheRepository(t *testing.T) {
	o := newOrigin(t)
	r := registry(t, o.URL)
	for _, name := range []string{"", "..", "a/../b", "a//b", "/a", "a/", "./a", "a?b", "a#b", "a%2e", `a\b`, "a b", "a\nb", "ä", strings.Repeat("a", 5000)} {
		if _, err := r.Repository(name).Stat(t.Context(), refsTo(t, nil)[0].Blob); err == nil {
			t.Errorf("name %q is accepted", name)
		}
	}
	if _, err := r.Repository("a").Get(t.Context(), "../b/tags/list", nil, nil); err == nil {
		t.Error("path ../b/tags/list is accepted")
	}
	if _, err := r.Repository("a").Resolve(t.Context(), "../x"); err == nil {
		t.Error("reference ../x is accepted")
	}
	o.wantRequests(t)
}

func TestUnreachable(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed := httptest.NewServer(nil)
	closed.Close()
	tls := httptest.NewUnstartedServer(nil)
	tls.Config.ErrorLog = log.New(io.Discard, "", 0)
	tls.StartTLS()
	defer tls.Close()
	reset := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer reset.Close()

	resolve := func(ctx context.Context, url string, change ...func(*Config)) error {
		_, err := registry(t, url, change...).Repository("app").Resolve(ctx, "latest")
		return err
	}
	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	refuse := func(c *Config) {
		c.Control = func(string, string, syscall.RawConn) error { return errors.New("address is private") }
	}
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"nothing listens":       {resolve(t.Context(), closed.URL), true},
		"unknown authority":     {resolve(t.Context(), tls.URL), true},
		"connection closed":     {resolve(t.Context(), reset.URL), true},
		"time is up":            {resolve(late, "http://"+silent.Addr().String()), true},
		"caller has gone":       {resolve(gone, "http://"+silent.Addr().String()), false},
		"address is refused":    {resolve(t.Context(), reset.URL, refuse), false},
		"500":                   {fmt.Errorf("x: %w", &StatusError{Code: 500}), true},
		"502":                   {&StatusError{Code: 502}, true},
		"503":                   {&StatusError{Code: 503}, true},
		"504":                   {&StatusError{Code: 504}, true},
		"501":                   {&StatusError{Code: 501}, false},
		"404":                   {&StatusError{Code: 404}, false},
		"401":                   {&StatusError{Code: 401}, false},
		"429":                   {&StatusError{Code: 429}, false},
		"corrupt":               {&chunk.CorruptError{}, false},
		"refused by redirectee": {&refusedElsewhereError{code: 403}, false},
		"nil":                   {nil, false},
	} {
		if c.err == nil && name != "nil" {
			t.Errorf("%s: no error", name)
		}
		if got := Unreachable(c.err); got != c.want {
			t.Errorf("%s: Unreachable(%v) = %v", name, c.err, got)
		}
	}
	if err := resolve(gone, closed.URL); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
}

func TestSilentHeaderTimesOut(t *testing.T) {
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	inBubble(t, h, func(t *testing.T, r *Registry) {
		begin := time.Now()
		_, err := r.Repository("app").Resolve(t.Context(), "latest")
		if !Unreachable(err) {
			t.Errorf("error is %v", err)
		}
		if d := time.Since(begin); d != defaultAnswerTimeout {
			t.Errorf("it took %v of virtual time", d)
		}
	})
}

func TestObserve(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	observe := func(c *Config) {
		c.Observe = func(method string, code int) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprint(method, code))
		}
	}
	content := random(10)
	o := newOrigin(t, content)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/v2/") {
			http.Redirect(w, r, "/elsewhere"+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	r := registry(t, o.URL, observe)
	if _, err := r.Repository("app").Stat(t.Context(), refsTo(t, content)[0].Blob); err != nil {
		t.Fatal(err)
	}
	o.Close()
	_, _ = r.Repository("app").Stat(t.Context(), refsTo(t, content)[0].Blob)
	if got, want := fmt.Sprint(seen), "[HEAD307 HEAD200 HEAD0 HEAD0 HEAD0]"; got != want {
		t.Errorf("observed %s, want %s", got, want)
	}
}

func TestHugeHeaderIsRefused(t *testing.T) {
	o := newOrigin(t)
	o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Warning", strings.Repeat("x", 2*maxHeaderBytes))
		return true
	}
	if _, err := registry(t, o.URL).Repository("app").Get(t.Context(), "tags/list", nil, nil); err == nil {
		t.Error("a header of 128 KiB is accepted")
	}
}

func TestUserAgentAndEncoding(t *testing.T) {
	var got http.Header
	o := newOrigin(t)
	o.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		got = r.Header.Clone()
		return true
	}
	r := registry(t, o.URL, func(c *Config) { c.UserAgent = "granary/1.2" })
	resp, err := r.Repository("app").Get(t.Context(), "tags/list", nil, http.Header{"Authorization": {"Bearer x"}, "X-A": {"b"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for name, want := range map[string]string{"User-Agent": "granary/1.2", "Accept-Encoding": "identity", "X-A": "b", "Authorization": ""} {
		if got.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, got.Get(name), want)
		}
	}
}

func TestCertificates(t *testing.T) {
	o := makeOrigin()
	o.answer = func(http.ResponseWriter, *http.Request) bool { return true }
	o.Server = httptest.NewUnstartedServer(o)
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	o.StartTLS()
	t.Cleanup(o.Close)
	pool := x509.NewCertPool()
	pool.AddCert(o.Certificate())
	for name, c := range map[string]struct {
		change func(*Config)
		ok     bool
	}{
		"the system's roots": {func(*Config) {}, false},
		"its root":           {trusting(pool), true},
		"other roots":        {trusting(x509.NewCertPool()), false},
		"no verification":    {func(c *Config) { c.InsecureSkipVerify = true }, true},
	} {
		resp, err := registry(t, o.URL, c.change).Repository("app").Get(t.Context(), "tags/list", nil, nil)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}

func TestControlSeesTheAddress(t *testing.T) {
	o := newOrigin(t)
	var seen string
	_, _ = registry(t, o.URL, func(c *Config) {
		c.Control = func(_, address string, _ syscall.RawConn) error { seen = address; return nil }
	}).Repository("app").Resolve(t.Context(), "latest")
	if want := strings.TrimPrefix(o.URL, "http://"); seen != want {
		t.Errorf("Control saw %q, want %q", seen, want)
	}
	o.wantRequests(t, "HEAD")
}
