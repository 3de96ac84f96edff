package proxy_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// silent is an upstream that answers nothing any more once it is.
type silent struct {
	proxy.Upstream // there are no other questions
	is             *atomic.Bool
	manifest       []byte
}

func (s silent) answer(ctx context.Context) (m upstream.Manifest, err error) {
	if s.is.Load() {
		<-ctx.Done()
		return m, ctx.Err()
	}
	chunk.SetOrigin(ctx, upstream.Origin)
	m.Bytes = s.manifest
	m.Digest, m.MediaType, m.Size = digest.FromBytes(m.Bytes), "application/vnd.oci.image.manifest.v1+json", int64(len(m.Bytes))
	return m, nil
}

func (s silent) Resolve(ctx context.Context, _ string) (upstream.Resolved, error) {
	m, err := s.answer(ctx)
	return m.Resolved, err
}

func (s silent) Manifest(ctx context.Context, _ string) (upstream.Manifest, error) {
	return s.answer(ctx)
}

// TestWhatIsHereIsServedWhenNobodySaysAnything: a place that takes all the time that a question has cannot be reached.
func TestWhatIsHereIsServedWhenNobodySaysAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := silent{is: new(atomic.Bool), manifest: []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`)}
		r := proxy.NewRegistry(proxy.Config{
			DefaultHost: "origin.test",
			Upstream:    func(ref.Repository, string) (proxy.Upstream, error) { return up, nil },
			Store:       chunkstore.NewStack(chunkstore.NewMemory(4<<20), nil),
			Catalog:     catalog.NewMemory(),
			Window:      8 << 20,
			Budget:      chunk.NewBudget(32 << 20),
		})
		h := proxy.NewHandler(r, "test-node", slog.New(slog.DiscardHandler), nil)
		for range 2 {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/app/manifests/v1", nil))
			if w.Code != http.StatusOK || w.Body.String() != string(up.manifest) {
				t.Errorf("silent: %v: %d %s", up.is.Load(), w.Code, w.Body)
			}
			up.is.Store(true)
		}
	})
}
