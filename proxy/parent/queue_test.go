package parent

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

func TestWhatIsAskedForFirstComesFirst(t *testing.T) {
	for name, c := range map[string]struct {
		rate   int64
		size   int64 // of runs, in bytes
		atOnce int
	}{
		"nothing is known of the line": {0, chunk.StripeSize, 2},
		"a thin line":                  {200 << 10, chunk.StripeSize, 2},
		"a faster one":                 {2 << 20, chunk.StripeSize, 4},
		"a fast one":                   {1 << 30, chunk.StripeSize, 12},
		"single chunks":                {200 << 10, chunk.Size, 8},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var q queue
				rate := func() int64 { return c.rate }
				begun := make(chan int, 12)
				end := make(chan struct{})
				for i := range 12 {
					go func() {
						leave, err := q.enter(t.Context(), c.size, rate)
						if err != nil {
							t.Error(err)
							return
						}
						begun <- i
						<-end
						leave()
					}()
					synctest.Wait()
				}
				if len(begun) != c.atOnce {
					t.Errorf("%d are asked for at once, want %d", len(begun), c.atOnce)
				}
				other, late := int64(chunk.Size), int64(1<<40) // a single chunk waits for no stripe, nor the other way round
				if c.size == other {
					other, late = chunk.StripeSize, c.size
				}
				if leave, err := q.enter(t.Context(), other, rate); err != nil {
					t.Error(err)
				} else {
					leave()
				}
				left, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := q.enter(left, late, rate); err == nil {
					t.Error("who has left is given a turn")
				}
				for range 12 { // one ends at a time
					end <- struct{}{}
					synctest.Wait()
				}
				close(begun)
				var order []int
				for i := range begun {
					order = append(order, i)
				}
				if len(order) != 12 || !slices.IsSorted(order[c.atOnce:]) {
					t.Errorf("they began as %v", order)
				}
				for _, l := range []line{q.single, q.longer} {
					if l.under != 0 || len(l.waiting) != 0 {
						t.Errorf("%d bytes are left, and %d wait", l.under, len(l.waiting))
					}
				}
			})
		})
	}
}

// TestABlobThatIsDoubtedWhileItWaitsItsTurn is not asked for when that comes.
func TestABlobThatIsDoubtedWhileItWaitsItsTurn(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusNotFound)
	}))
	t.Cleanup(s.Close)
	ps, err := New([]Config{{Name: "hub", Upstream: upstream.Config{URL: s.URL}}}, nil, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ps.Close)
	r := ps.Repositories(ref.Repository{Host: "registry.test", Name: "app"}, "")[0]
	q := &r.parent.queue
	leave, err := q.enter(t.Context(), leastAsked, func() int64 { return 0 }) // it is full
	if err != nil {
		t.Fatal(err)
	}
	m, err := chunk.Grid(digest.FromString("x"), 2*chunk.Size)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		ended <- chunk.GetRun(t.Context(), r.Blob(), []chunk.Ref{m.At(0), m.At(1)}, func(chunk.Ref, []byte) error { return nil })
	}()
	for waits := false; !waits; runtime.Gosched() {
		q.mu.Lock()
		waits = len(q.longer.waiting) > 0
		q.mu.Unlock()
	}
	r.Doubt(m.Blob())
	leave()
	if err := <-ended; !errors.Is(err, chunk.ErrNotFound) || asked.Load() != 0 {
		t.Errorf("it ends with %v, after %d requests", err, asked.Load())
	}
}
