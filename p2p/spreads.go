package p2p

import (
	"sync"
	"time"

	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/tracker"
)

const waitForGiven = 20 * time.Second // for somebody to refer to

// spreads are [decide.Spreads] for many goroutines.
type spreads struct {
	mu     sync.Mutex
	all    *decide.Spreads
	forget *time.Timer // while there are any
}

func (ss *spreads) enter(k decide.Stripe, r *decide.Request) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.all.Enter(k, r, time.Now())
	if ss.forget == nil {
		ss.forget = time.AfterFunc(decide.SpreadFor, ss.forgetOld)
	}
}

// forgetOld forgets what has not been asked for in a while, so that a node is as large after a crowd as before it.
func (ss *spreads) forgetOld() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.all.Forget(time.Now()) > 0 {
		ss.forget.Reset(decide.SpreadFor)
		return
	}
	ss.forget = nil
}

// hurry has a request that waits be served.
func (ss *spreads) hurry(k decide.Stripe, r *decide.Request) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.all.Quit(k, r) {
		r.Late = true
		ss.all.Enter(k, r, time.Now())
	}
}

func (ss *spreads) look(k decide.Stripe) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.all.Look(k, time.Now())
}

func (ss *spreads) quit(k decide.Stripe, r *decide.Request) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.all.Quit(k, r)
}

func (ss *spreads) leave(k decide.Stripe, to tracker.ID, all bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.all.Leave(k, to, all, time.Now())
}

func (ss *spreads) have(k decide.Stripe, from tracker.ID) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.all.Have(k, from, time.Now())
}

// transit is a stripe that is got for this node's readers, and the owner that gives it, be it by
// way of others.
type transit struct {
	decide.Stripe
	owner tracker.ID
}

// transits are those that are under way. The zero value is none.
type transits struct {
	mu  sync.Mutex
	all map[transit]int
}

func (ts *transits) add(t transit, n int) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.all == nil {
		ts.all = make(map[transit]int)
	}
	if ts.all[t] += n; ts.all[t] == 0 {
		delete(ts.all, t)
	}
}

func (ts *transits) under(t transit) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.all[t] > 0
}
