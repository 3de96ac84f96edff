package parent_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// TestWhatAParentSaysItself is bounded, and of what type was asked for. While it is being made the parent is not
// down, however often it is asked.
func TestWhatAParentSaysItself(t *testing.T) {
	const mediaType = "application/test"
	blob := chunk.Ref{Blob: digest.FromString("x"), Total: 1, Size: 1}
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter)
		ok     func(error) bool
		state  string
	}{
		"it": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, "text") }, func(err error) bool { return err == nil }, "up"},
		"it is being made": {func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, func(err error) bool {
			var said *upstream.StatusError
			return errors.As(err, &said) && said.RetryAfter().Seconds() == 7
		}, "up"},
		"there is none": {func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, missing, "up"},
		"of another type": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "text")
		}, missing, "up"},
		"it says that it is too large": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, "a text") }, missing, "up"},
		"it has no end": {func(w http.ResponseWriter) {
			for range 100 {
				_, _ = io.WriteString(w, "a text")
				_ = http.NewResponseController(w).Flush()
			}
		}, chunk.IsCorrupt, "quarantined"},
		"it is broken": {func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, upstream.Unreachable, "down"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
				w.Header().Set("Content-Type", mediaType)
				if q.URL.Path != "/v2/registry.test/app/said/"+string(blob.Blob) {
					t.Errorf("%s is asked for", q.URL.Path)
				}
				c.answer(w)
			}))
			t.Cleanup(s.Close)
			ps, r := at(t, s.URL)
			times := 1
			if name == "it is being made" {
				times = 20
			}
			for range times {
				if p, err := r.Own(t.Context(), blob, "said/", nil, mediaType, 4); !c.ok(err) || err == nil && string(p) != "text" {
					t.Errorf("%q, %v", p, err)
				}
			}
			if is := ps.Status()[0]; is.State != c.state {
				t.Errorf("the parent is %+v", is)
			}
		})
	}
}

func missing(err error) bool { return errors.Is(err, chunk.ErrNotFound) }

// at returns a repository of one parent, and the parent, which is at a URL.
func at(t *testing.T, url string) (*parent.Parents, *parent.Repository) {
	t.Helper()
	ps, err := parent.New([]parent.Config{{Name: "hub", Upstream: upstream.Config{URL: url}}}, nil, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ps.Close)
	return ps, ps.Repositories(ref.Repository{Host: host, Name: "app"}, "")[0]
}
