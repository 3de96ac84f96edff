package p2p

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// Timing says how long a node waits for others. Zeros are the defaults.
type Timing struct {
	// HedgeMin and HedgeMax bound the silence after which a second owner is asked,
	// which is else what the first has taken for nineteen of twenty of its answers
	// to begin: 50 ms and 1 s.
	HedgeMin, HedgeMax time.Duration
	// Budget is for how long all who were asked may be silent before the node
	// turns to the upstream: 2 s.
	Budget time.Duration
	// Patience is for how long an owner may say that it waits while nothing comes
	// of it: 1 min.
	Patience time.Duration
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		value *time.Duration
		zero  time.Duration
	}{{&t.HedgeMin, 50 * time.Millisecond}, {&t.HedgeMax, time.Second}, {&t.Budget, 2 * time.Second}, {&t.Patience, time.Minute}} {
		if *d.value <= 0 {
			*d.value = d.zero
		}
	}
	return t
}

const (
	maxAsked = 4 // times that one member is asked in a pursuit
	// queuedBudgets is for how many budgets a member that has other answers to give
	// may be silent about this one: it may be queued behind them on a thin link.
	queuedBudgets = 5
	// maxPatience is how many times the patience a member may say that more and
	// more comes in, without a chunk of it.
	maxPatience = 10
)

// itself is the ID by which a pursuit names the node that pursues.
const itself = tracker.ID("")

// order is what a pursuit wants done next.
type order struct {
	ask    tracker.ID // [itself]: the node gets it as an owner would
	role   wire.Role
	cancel bool // what was asked is not wanted any more
}

// candidate is an owner that may be asked.
type candidate struct {
	id    tracker.ID
	hedge time.Duration // silence after which the next one is asked too
}

// A pursuit decides whom to ask for adjacent chunks of one stripe, and what to do
// when that does not help. It is told what happens and when, and answers with
// orders. It starts no goroutine, reads no clock and sends nothing, so that the
// same decisions can be simulated. It is for one goroutine.
type pursuit struct {
	timing Timing
	random *rand.Rand
	usable func(tracker.ID) bool // a member that is believed to be up
	// alive returns when anything was last heard of a member: an answer that is
	// queued behind others is no silence.
	alive func(tracker.ID) time.Time

	owners []candidate // to be asked, best first; one that was asked may come back
	asked  map[tracker.ID]int
	under  []*attempt
	own    bool // the node has been ordered to get it itself
	spent  bool // and could not
	heard  time.Time
	gained time.Time // when the last chunk, or word of more bytes, came
	given  time.Time // when the last chunk came
}

// attempt is one member that has been asked and has not failed.
type attempt struct {
	id      tracker.ID
	role    wire.Role
	owner   tracker.ID    // for a holder: who referred to it
	hedge   time.Duration // silence after which another is asked
	hedged  bool          // another has been asked
	resumed bool          // it has spoken again after that, once
	silent  time.Time     // since when nothing was heard of it about this
	bytes   int64         // that it said to have so far
}

// start returns the first orders.
func (p *pursuit) start(now time.Time) []order {
	p.asked = make(map[tracker.ID]int)
	p.heard, p.gained, p.given = now, now, now
	return p.next(now)
}

// next orders the best owner that is left to be asked, else the node itself. While
// somebody who was asked is still at it, the node itself is no hurry.
func (p *pursuit) next(now time.Time) []order {
	for len(p.owners) > 0 {
		c := p.owners[0]
		p.owners = p.owners[1:]
		if c.id == itself {
			return p.itself()
		}
		if p.askable(c.id) {
			return p.ask(now, attempt{id: c.id, role: wire.ToOwner, hedge: c.hedge})
		}
	}
	if len(p.under) > 0 {
		return nil
	}
	return p.itself()
}

// askable reports whether a member may be asked: no two of its answers are awaited,
// and none is asked for ever.
func (p *pursuit) askable(id tracker.ID) bool {
	return p.find(id) == nil && p.asked[id] < maxAsked && p.usable(id)
}

func (p *pursuit) ask(now time.Time, a attempt) []order {
	a.silent = now
	p.asked[a.id]++
	p.under = append(p.under, &a)
	return []order{{ask: a.id, role: a.role}}
}

func (p *pursuit) itself() []order {
	if p.own {
		return nil
	}
	p.own = true
	return []order{{ask: itself, role: wire.ToOwner}}
}

func (p *pursuit) find(id tracker.ID) *attempt {
	i := slices.IndexFunc(p.under, func(a *attempt) bool { return a.id == id })
	if i < 0 {
		return nil
	}
	return p.under[i]
}

func (p *pursuit) drop(id tracker.ID) {
	p.under = slices.DeleteFunc(p.under, func(a *attempt) bool { return a.id == id })
}

// putBack makes a cancelled attempt's owner the first that is asked next.
func (p *pursuit) putBack(a *attempt) {
	c := candidate{a.id, a.hedge}
	if a.role == wire.ToHolder {
		c = candidate{a.owner, p.timing.HedgeMax}
	}
	if !slices.ContainsFunc(p.owners, func(other candidate) bool { return other.id == c.id }) {
		p.owners = slices.Insert(p.owners, 0, c)
	}
}

// progress is told that id says to be waiting, with so many bytes so far. If
// others were asked because it had been silent, they are not needed; but the
// second time that happens they go on, lest two take turns for ever.
func (p *pursuit) progress(id tracker.ID, bytes int64, now time.Time) (orders []order) {
	a := p.find(id)
	if a == nil {
		return nil
	}
	a.silent, p.heard = now, now
	a.hedge = p.timing.HedgeMax // it has begun, and speaks less often from now on
	if bytes > a.bytes {
		a.bytes, p.gained = bytes, now
	}
	if !a.hedged || a.resumed {
		return nil
	}
	a.hedged, a.resumed = false, true
	for later := len(p.under) - 1; p.under[later] != a; later-- {
		b := p.under[later]
		p.under = slices.Delete(p.under, later, later+1)
		p.putBack(b)
		orders = append(orders, order{ask: b.id, cancel: true})
	}
	return orders
}

// data is told that a chunk has come from id. One source is enough from then on;
// of the others those come back as candidates that were not found silent.
func (p *pursuit) data(id tracker.ID, now time.Time) (orders []order) {
	p.heard, p.gained, p.given = now, now, now
	var kept []*attempt
	for _, a := range slices.Backward(p.under) {
		if a.id == id {
			a.silent, a.hedge, a.hedged = now, p.timing.HedgeMax, false
			kept = append(kept, a)
			continue
		}
		if !a.hedged {
			p.putBack(a)
		}
		orders = append(orders, order{ask: a.id, cancel: true})
	}
	p.under = kept
	if id != itself && p.own && !p.spent {
		p.own = false
		orders = append(orders, order{ask: itself, cancel: true})
	}
	return orders
}

// failed is told that id cannot be reached, has broken off, or was wrong.
func (p *pursuit) failed(id tracker.ID, now time.Time) []order {
	a := p.find(id)
	if a == nil {
		return nil
	}
	p.drop(id)
	return p.instead(a, now)
}

// instead orders who is asked because an attempt is of no use: instead of a holder,
// the owner that referred to it.
func (p *pursuit) instead(a *attempt, now time.Time) []order {
	if a.role == wire.ToHolder {
		return p.again(a.owner, now)
	}
	return p.next(now)
}

// notFound is told that id does not have it. Of a holder that means nothing; an
// owner has asked the upstream, which is the node's own to hear.
func (p *pursuit) notFound(id tracker.ID, now time.Time) []order {
	a := p.find(id)
	if a == nil {
		return nil
	}
	p.drop(id)
	if a.role == wire.ToHolder {
		return p.again(a.owner, now)
	}
	return p.itself()
}

// unavailable is told that id cannot get it.
func (p *pursuit) unavailable(id tracker.ID, cause wire.Cause, now time.Time) []order {
	switch cause {
	case wire.CauseDenied, wire.CauseUnreachable:
		return p.notFound(id, now)
	}
	return p.failed(id, now)
}

// busy is told that id refers to members who have been given the same.
func (p *pursuit) busy(id tracker.ID, referrals []tracker.ID, now time.Time) []order {
	a := p.find(id)
	if a == nil {
		return nil
	}
	p.drop(id)
	p.heard = now
	if a.role != wire.ToOwner {
		return p.instead(a, now) // who insists is not referred
	}
	for _, i := range p.random.Perm(len(referrals)) {
		if to := referrals[i]; to != id && to != itself && p.askable(to) {
			return p.ask(now, attempt{id: to, role: wire.ToHolder, owner: id, hedge: p.timing.HedgeMax})
		}
	}
	return p.again(id, now)
}

// again asks an owner that has referred in vain.
func (p *pursuit) again(owner tracker.ID, now time.Time) []order {
	if p.find(owner) != nil {
		return nil
	}
	if !p.askable(owner) {
		return p.next(now)
	}
	return p.ask(now, attempt{id: owner, role: wire.ToOwnerAgain, hedge: p.timing.HedgeMax})
}

// ownFailed is told that the node itself could not get it. Whoever else is at it
// still may, until the budget is spent.
func (p *pursuit) ownFailed() { p.spent = true }

// wake is told that the time that deadline returned has come. silent are the
// members that are at fault for that: it is told of each attempt once.
func (p *pursuit) wake(now time.Time) (orders []order, silent []tracker.ID) {
	for _, a := range slices.Clone(p.under) {
		if a.hedged || now.Before(p.hedgeAt(a)) {
			continue
		}
		a.hedged = true
		if now.Sub(p.alive(a.id)) >= a.hedge {
			silent = append(silent, a.id)
		}
		orders = append(orders, p.instead(a, now)...)
	}
	if now.Before(p.patientUntil()) {
		return orders, silent
	}
	if !p.own {
		return append(orders, p.itself()...), silent
	}
	if p.spent { // nobody is left
		for _, a := range p.under {
			orders = append(orders, order{ask: a.id, cancel: true})
		}
		p.under = nil
	}
	return orders, silent
}

// word returns when a member was last heard, about this or, for a while, about
// anything else.
func (p *pursuit) word(a *attempt) time.Time {
	latest := a.silent.Add(queuedBudgets * p.timing.Budget)
	t := p.alive(a.id)
	switch {
	case t.Before(a.silent):
		return a.silent
	case t.After(latest):
		return latest
	}
	return t
}

// hedgeAt returns when the silence of a member is long enough for another to be
// asked.
func (p *pursuit) hedgeAt(a *attempt) time.Time { return p.word(a).Add(a.hedge) }

// patientUntil returns when it is for the node itself, if nothing is heard until
// then: of anybody, or of anything that comes of their waiting.
func (p *pursuit) patientUntil() time.Time {
	heard := p.heard
	for _, a := range p.under {
		if t := p.word(a); t.After(a.silent) && t.After(heard) {
			heard = t
		}
	}
	return earliest(heard.Add(p.timing.Budget), p.gained.Add(p.timing.Patience), p.given.Add(maxPatience*p.timing.Patience))
}

// deadline returns when wake is to be called next; zero is never.
func (p *pursuit) deadline() (t time.Time) {
	for _, a := range p.under {
		if !a.hedged {
			t = earliest(t, p.hedgeAt(a))
		}
	}
	if len(p.under) > 0 && (!p.own || p.spent) {
		t = earliest(t, p.patientUntil())
	}
	return t
}

// earliest returns the earliest of times that are not zero.
func earliest(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if first.IsZero() || !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	return first
}
