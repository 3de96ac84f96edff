package parent_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/upstream"
)

// TestAParentThatFallsSilentIsSpokenOfOnce until it answers again.
func TestAParentThatFallsSilentIsSpokenOfOnce(t *testing.T) {
	var refuses atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if refuses.Load() {
			w.WriteHeader(http.StatusForbidden) // as a gateway does to who shows no token
			return
		}
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	}))
	defer s.Close()
	var answers []bool
	ps, err := parent.New([]parent.Config{{
		Name: "hub", Upstream: upstream.Config{URL: s.URL}, Heard: func(err error) { answers = append(answers, err == nil) },
	}}, nil, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer ps.Close()
	for _, refused := range []bool{false, false, true, true, false, false, true} {
		refuses.Store(refused)
		ps.Try(t.Context())
	}
	if want := []bool{false, true, false}; !slices.Equal(answers, want) {
		t.Errorf("heard %v, want %v", answers, want)
	}
}
