package p2p

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
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

// TestWordThatAMemberHasAStripeIsNeverTooMuch: others may wait for it, as many as there may be requests.
func TestWordThatAMemberHasAStripeIsNeverTooMuch(t *testing.T) {
	self := tracker.Peer{ID: "self", Weight: 1}
	c := &Client{cfg: Config{Members: tracker.NewStatic(tracker.NewView(self, []tracker.Peer{self}))}}
	s := &Server{client: c, spreads: &spreads{all: decide.NewSpreads(rand.New(rand.NewPCG(1, 2)))}, served: maxServed}
	get := wire.Get{Blob: digest.FromString("x"), Total: 3 * chunk.Size, Count: 1}
	l := &served{server: s, from: "second", guest: &guest{served: maxServedOf}}
	if f := l.answer(t.Context(), wire.Frame{Type: wire.TypeHave, Header: get.Header()}); f.Type != wire.TypeDone {
		t.Errorf("the answer is of type %d, header %q", f.Type, f.Header)
	}
	if f := l.answer(t.Context(), wire.Frame{Type: wire.TypeGet, Header: get.Header()}); f.Type != wire.TypeUnavailable {
		t.Errorf("one request more is answered by type %d", f.Type)
	}
}
