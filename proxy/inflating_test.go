package proxy

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/toc"
)

// TestWhoWaitsForWhom: who reads the same layer waits, and hurries what is fetched for that;
// who reads from elsewhere does not.
func TestWhoWaitsForWhom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all turns
		var one inflating
		x := toc.Extent{Size: 5, Digest: toc.Digest{1}}
		from := func(ctx context.Context, host string) *contents {
			return &contents{ctx: ctx, turns: &all, inflating: &one, origin: lazy.Origin{Repository: ref.Repository{Host: host, Name: "app"}}}
		}
		later := &order{at: "z"}
		done := from(withOrder(withUrgency(t.Context(), expected), later), "a.test").Begin(x)
		if done == nil {
			t.Fatal("the first one waits")
		}
		if other := from(t.Context(), "b.test").Begin(x); other == nil {
			t.Error("who reads from elsewhere waits")
		} else {
			other()
		}
		sooner := make(chan func())
		go func() {
			sooner <- from(withOrder(withUrgency(t.Context(), expected), &order{at: "a"}), "a.test").Begin(x)
		}()
		synctest.Wait()
		if at := all.placeOf(later); at != "a" || later.hurried {
			t.Errorf("what is fetched has the place %q, hurried %v", at, later.hurried)
		}
		program := make(chan func())
		go func() { program <- from(t.Context(), "a.test").Begin(x) }()
		gone, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if from(gone, "a.test").Begin(x) != nil { // it gives up
			t.Error("a second one inflates")
		}
		synctest.Wait()
		if !later.hurried {
			t.Error("a program waits for what nobody hurries")
		}
		done()
		if <-sooner != nil || <-program != nil {
			t.Error("those who have waited inflate")
		}
		if done = from(t.Context(), "a.test").Begin(x); done == nil {
			t.Error("the next one waits")
		}
		done()
	})
}
