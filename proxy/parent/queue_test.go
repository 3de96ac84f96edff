package parent

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/granary-oci/granary/chunkstore/chunk"
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
