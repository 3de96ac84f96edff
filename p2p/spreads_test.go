package p2p

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/p2p/decide"
)

func TestWhatOwnersWereAskedForIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := &spreads{all: decide.NewSpreads(rand.New(rand.NewPCG(1, 2)))}
		for range 2 { // also what comes after all was forgotten
			for i := range 10 {
				k := decide.Stripe{Number: i}
				ss.enter(k, &decide.Request{From: "a", FanOut: 2, Stuck: func(time.Time) bool { return false }, Decided: func(decide.Verdict) {}})
				ss.leave(k, "a", true)
				time.Sleep(time.Second)
			}
			for _, c := range []struct {
				after time.Duration
				left  bool
			}{{decide.SpreadFor / 2, true}, {2 * decide.SpreadFor, false}} {
				time.Sleep(c.after)
				synctest.Wait()
				ss.mu.Lock()
				if left := ss.all.Forget(time.Time{}); left > 0 != c.left { // of that time nothing is old
					t.Errorf("%v later %d stripes are left", c.after, left)
				}
				ss.mu.Unlock()
			}
		}
	})
}
