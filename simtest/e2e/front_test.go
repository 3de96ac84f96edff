package e2e

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// front is a registry's door, at which is written down who comes.
type front struct {
	address, url string

	mu  sync.Mutex
	who map[string]int // requests by user agent, without its version
}

func startFront(t *testing.T, r *registry) *front {
	t.Helper()
	to, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{who: make(map[string]int)}
	proxy := httputil.NewSingleHostReverseProxy(to)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		name, _, _ := strings.Cut(req.UserAgent(), "/")
		f.mu.Lock()
		f.who[name]++
		f.mu.Unlock()
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	f.url, f.address = s.URL, strings.TrimPrefix(s.URL, "http://")
	return f
}

func (f *front) seen(who string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.who[who]
}
