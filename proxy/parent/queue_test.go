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
		atOnce int // stripes
	}{
		"nothing is known of the line": {0, 2},
		"a thin line":                  {200 << 10, 2},
		"a faster one":                 {2 << 20, 4},
		"a fast one":                   {1 << 30, 8},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var q queue
				rate := func() int64 { return c.rate }
				begun := make(chan int, 8)
				end := make(chan struct{})
				for i := range 8 {
					go func() {
						leave, err := q.enter(t.Context(), chunk.StripeSize, rate)
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
					t.Errorf("%d stripes are asked for at once, want %d", len(begun), c.atOnce)
				}
				if leave, err := q.enter(t.Context(), chunk.Size, rate); err != nil {
					t.Error(err) // a small one waits for nobody
				} else {
					leave()
				}
				left, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := q.enter(left, 1<<40, rate); err == nil {
					t.Error("who has left is given a turn")
				}
				for range 8 { // one ends at a time
					end <- struct{}{}
					synctest.Wait()
				}
				close(begun)
				var order []int
				for i := range begun {
					order = append(order, i)
				}
				if len(order) != 8 || !slices.IsSorted(order[c.atOnce:]) || q.under != 0 || len(q.waiting) != 0 {
					t.Errorf("they began as %v; %d bytes are left, and %d wait", order, q.under, len(q.waiting))
				}
			})
		})
	}
}
