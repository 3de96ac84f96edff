package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const signature = "X-Amz-Signature=hunter2"

// redirecting makes o a registry that wants credentials and redirects to what
// target returns, with a signature. It records what each host was told.
func redirecting(o *origin, target func(r *http.Request) string) (told func() string) {
	var mu sync.Mutex
	var seen []string
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		_, _, authorized := r.BasicAuth()
		seen = append(seen, fmt.Sprintf("%s authorized=%v cookie=%v", r.Host, authorized, r.Header.Get("Cookie") != ""))
		mu.Unlock()
		switch {
		case strings.HasPrefix(r.URL.Path, "/storage/"):
			return false
		case !authorized:
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Header().Set("Set-Cookie", "session=1")
			http.Redirect(w, r, target(r)+"/storage"+r.URL.Path+"?"+signature, http.StatusTemporaryRedirect)
		}
		return true
	}
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		s := strings.Join(seen, "\n")
		seen = nil
		return s
	}
}

func withPassword(c *Config) {
	c.Credentials = func(context.Context, string) (string, string, error) { return "ann", "hunter2", nil }
}

func TestAuthorizationStaysAtItsOrigin(t *testing.T) {
	content := random(3 * mib)
	for name, c := range map[string]struct {
		target string
		kept   bool
	}{
		"same origin":        {"", true},
		"default port":       {"http://registry.test:80", true},
		"another host":       {"http://storage.example", false},
		"subdomain":          {"http://cdn.registry.test", false},
		"parent domain":      {"http://test", false},
		"another port":       {"http://registry.test:8080", false},
		"another case":       {"http://Registry.TEST", true},
		"user of its own":    {"http://x:y@registry.test", true},
		"name with our name": {"http://registry.test.evil.example", false},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, content)
			told := redirecting(o, func(*http.Request) string { return c.target })
			r := registry(t, "http://registry.test", withPassword)
			atAnyHost(r, o.URL)
			fetch(t, r.Repository("app"), content, refsTo(t, content)[1:])
			lines := strings.Split(told(), "\n")
			if len(lines) != 3 {
				t.Fatalf("requests are %q", lines)
			}
			if want := fmt.Sprintf("authorized=%v cookie=false", c.kept); !strings.HasSuffix(lines[2], want) {
				t.Errorf("the redirected request is %q, want %s", lines[2], want)
			}
		})
	}
}

func TestRedirectsAreNotRemembered(t *testing.T) {
	content := random(6 * mib)
	o := newOrigin(t, content)
	n := 0
	told := redirecting(o, func(*http.Request) string { n++; return fmt.Sprintf("http://cdn%d.test", n) })
	r := registry(t, "http://registry.test", withPassword)
	atAnyHost(r, o.URL)
	p, refs := r.Repository("app"), refsTo(t, content)
	fetch(t, p, content, refs[:3])
	told()
	fetch(t, p, content, refs[3:])
	if got, want := told(), "registry.test authorized=true cookie=false\ncdn2.test authorized=false cookie=false"; got != want {
		t.Errorf("requests are\n%s\nwant\n%s", got, want)
	}
}

func TestRedirectsKeepConnections(t *testing.T) {
	content := random(4 * mib)
	var conns atomic.Int64
	o := watchedOrigin(t, func(s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}, content)
	redirecting(o, func(*http.Request) string { return "" })
	p := registry(t, o.URL, withPassword).Repository("app")
	for _, ref := range refsTo(t, content) {
		fetch(t, p, content, []chunk.Ref{ref})
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for requests one after the other", n)
	}
}

// A signed URL that has expired mid-blob is replaced by a new one.
func TestExpiredSignature(t *testing.T) {
	content := random(3 * mib)
	o := newOrigin(t, content)
	n := 0
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Host == "registry.test" {
			http.Redirect(w, r, "http://cdn.test"+r.URL.Path+"?"+signature, http.StatusFound)
			return true
		}
		switch n++; n {
		case 1:
			sendPart(w, r, content, mib+mib/2)
		case 2:
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}
	r := registry(t, "http://registry.test")
	atAnyHost(r, o.URL)
	fetch(t, r.Repository("app"), content, refsTo(t, content)).want(0, 1, 2)
	if n != 3 {
		t.Errorf("storage was asked %d times, want 3", n)
	}
}

func TestRefusalElsewhere(t *testing.T) {
	content := random(3 * mib)
	o := newOrigin(t, content)
	code := http.StatusForbidden
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Host == "registry.test" {
			http.Redirect(w, r, "http://cdn.test/"+"?"+signature, http.StatusFound)
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="phish"`)
		w.WriteHeader(code)
		io.WriteString(w, "<StringToSign>hunter2</StringToSign>")
		return true
	}
	r := registry(t, "http://registry.test", withPassword)
	atAnyHost(r, o.URL)
	_, err := r.Repository("app").Blob().Get(t.Context(), refsTo(t, content)[0])
	var status *StatusError
	if errors.As(err, &status) || Unreachable(err) {
		t.Errorf("a refusal by storage counts as the registry's: %v", err)
	}
	wantNoSecret(t, err, "hunter2", "phish")
	if !strings.Contains(err.Error(), "cdn.test") {
		t.Errorf("error does not tell who refused: %v", err)
	}
	code = http.StatusBadGateway
	_, err = r.Repository("app").Blob().Get(t.Context(), refsTo(t, content)[0])
	if !errors.As(err, &status) || !Unreachable(err) || len(status.Body) > 0 || status.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("502 by storage is %+v", err)
	}
}

// A URL may be signed for GET alone.
func TestHeadOfASignedURL(t *testing.T) {
	content := random(3 * mib)
	d := digest.FromBytes(content)
	o := newOrigin(t, content)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Host == "registry.test" {
			http.Redirect(w, r, "http://cdn.test"+r.URL.Path+"?"+signature, http.StatusFound)
			return true
		}
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}
	r := registry(t, "http://registry.test")
	atAnyHost(r, o.URL)
	if n, err := r.Repository("app").Stat(t.Context(), d); err != nil || n != int64(len(content)) {
		t.Errorf("Stat is %d, %v", n, err)
	}
}

func TestRedirectsHaveAnEnd(t *testing.T) {
	for hops, ok := range map[int]bool{maxRedirects: true, maxRedirects + 1: false} {
		o := newOrigin(t)
		n := 0
		o.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if n++; n <= hops {
				http.Redirect(w, r, r.URL.Path+"?"+signature, http.StatusPermanentRedirect)
			}
			return true
		}
		resp, err := registry(t, o.URL).Repository("app").Get(t.Context(), "tags/list", nil, nil)
		if (err == nil) != ok {
			t.Errorf("after %d redirects: %v", hops, err)
		}
		if err == nil {
			resp.Body.Close()
		} else {
			wantNoSecret(t, err, "hunter2")
		}
	}
}

func TestRedirectsThatAreRefused(t *testing.T) {
	plain := newOrigin(t)
	o := makeOrigin()
	o.Server = httptest.NewUnstartedServer(o)
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	o.StartTLS()
	t.Cleanup(o.Close)
	pool := x509.NewCertPool()
	pool.AddCert(o.Certificate())
	for location, want := range map[string]string{
		plain.URL + "/x?" + signature:     "https to http",
		"ftp://example/?" + signature:     "scheme",
		"http:?" + signature:              "host",
		"https://[::1/?" + signature:      "malformed",
		"https://a:hunter2/?" + signature: "malformed",
	} {
		o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusFound)
			return true
		}
		_, err := registry(t, o.URL, trusting(pool)).Repository("app").Get(t.Context(), "tags/list", nil, nil)
		wantNoSecret(t, err, "hunter2")
		if !strings.Contains(err.Error(), want) || Unreachable(err) {
			t.Errorf("redirected to %s: %v", location, err)
		}
	}
	plain.wantRequests(t)
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	content := random(3 * mib)
	ref := refsTo(t, content)[0]
	o := newOrigin(t, content)
	gone := httptest.NewServer(nil)
	gone.Close()
	var to string
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/"):
			http.Redirect(w, r, to+"/x?"+signature, http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/cut/"):
			sendPart(w, r, content, 0)
		default:
			http.NotFound(w, r)
		}
		return true
	}
	p := registry(t, o.URL, withPassword).Repository("app")
	for name, target := range map[string]string{"unreachable": gone.URL, "cut": o.URL + "/cut", "missing": o.URL} {
		to = target
		_, err := p.Blob().Get(t.Context(), ref)
		wantNoSecret(t, err, "hunter2", "X-Amz")
		_, err = p.Manifest(t.Context(), "latest")
		wantNoSecret(t, err, "hunter2", "X-Amz")
		if name == "missing" && !errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("missing: %v", err)
		}
	}
}

// what a caller gets of a response tells nothing of how it was asked for
func TestResponseHasNoRequest(t *testing.T) {
	o := newOrigin(t)
	o.answer = func(http.ResponseWriter, *http.Request) bool { return true }
	resp, err := registry(t, o.URL, withPassword).Repository("app").Get(t.Context(), "tags/list", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.Request != nil {
		t.Error("the response carries its request")
	}
}
