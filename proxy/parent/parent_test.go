package parent_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/proxy/upstreamtest"
)

const host = "registry.test"

// TestUpstreams: a parent is asked under the registry's name, and is as good as the registry, with and without
// maps and chunks by their CID.
func TestUpstreams(t *testing.T) {
	for name, gateway := range map[string]bool{"registry face": false, "gateway": true} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, func(t *testing.T, c *upstreamtest.Content) proxy.Upstream {
				s := httptest.NewServer(under(host, c))
				t.Cleanup(s.Close)
				open := func() proxy.Upstream {
					ps, err := parent.New([]parent.Config{{Name: "hub", Upstream: upstream.Config{URL: s.URL}, Gateway: gateway}}, nil, func(error) {})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(ps.Close)
					return ps.Repositories(ref.Repository{Host: host, Name: upstreamtest.Name}, "")[0]
				}
				return faultless{open(), open}
			})
		})
	}
}

// faultless has each source of a parent that is not at fault: one that has given a wrong answer is not
// asked again for a while, and the suite takes wrong answers for what they are each time.
type faultless struct {
	proxy.Upstream
	open func() proxy.Upstream
}

func (f faultless) Blob() chunk.Source { return f.open().Blob() }

// under serves what a registry has under the registry's name, as a parent's registry face does.
func under(host string, registry http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		path, ok := strings.CutPrefix(q.URL.Path, "/v2/"+host+"/")
		if !ok {
			http.NotFound(w, q)
			return
		}
		inner := q.Clone(q.Context())
		inner.URL.Path = "/v2/" + path
		registry.ServeHTTP(w, inner)
	})
}
