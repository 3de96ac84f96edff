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

	owners []candidate // not asked yet, best first
	under  []*attempt
	own    bool // the node has been ordered to get it itself
	heard  time.Time
	gained time.Time // when the last chunk, or progress of an owner, came
	bytes  int64     // the most that an owner said to have so far
}

// attempt is one member that has been asked and has not failed.
type attempt struct {
	id     tracker.ID
	role   wire.Role
	owner  tracker.ID    // for a holder: who referred to it
	hedge  time.Duration // silence after which another is asked
	hedged bool          // another has been asked
	silent time.Time     // since when nothing was heard of it about this
}

// start returns the first orders.
func (p *pursuit) start(now time.Time) []order {
	p.heard, p.gained = now, now
	return p.next(now)
}

// next orders the best owner that is left to be asked, else the node itself. While
// somebody who was asked is still at it, the node itself is no hurry.
func (p *pursuit) next(now time.Time) []order {
	for len(p.owners) > 0 {
		c := p.owners[0]
		p.owners = p.owners[1:]
		if c.id == itself {
			return p.itself(now)
		}
		if p.usable(c.id) {
			return p.ask(now, attempt{id: c.id, role: wire.ToOwner, hedge: c.hedge})
		}
	}
	if len(p.under) > 0 {
		return nil
	}
	return p.itself(now)
}

func (p *pursuit) ask(now time.Time, a attempt) []order {
	a.silent = now
	p.under = append(p.under, &a)
	return []order{{ask: a.id, role: a.role}}
}

func (p *pursuit) itself(now time.Time) []order {
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

// progress is told that id says to be waiting, with so many bytes so far. If
// others were asked because it had been silent, they are not needed.
func (p *pursuit) progress(id tracker.ID, bytes int64, now time.Time) (orders []order) {
	a := p.find(id)
	if a == nil {
		return nil
	}
	a.silent, p.heard = now, now
	a.hedge = p.timing.HedgeMax // it has begun, and speaks less often from now on
	if bytes > p.bytes {
		p.bytes, p.gained = bytes, now
	}
	if !a.hedged {
		return nil
	}
	a.hedged = false
	for later := len(p.under) - 1; p.under[later] != a; later-- {
		b := p.under[later]
		p.owners = slices.Insert(p.owners, 0, candidate{b.id, b.hedge})
		p.under = slices.Delete(p.under, later, later+1)
		orders = append(orders, order{ask: b.id, cancel: true})
	}
	return orders
}

// data is told that a chunk has come from id. One source is enough from then on.
func (p *pursuit) data(id tracker.ID, now time.Time) (orders []order) {
	p.heard, p.gained = now, now
	for _, a := range p.under {
		if a.id == id {
			a.silent, a.hedge = now, p.timing.HedgeMax
			continue
		}
		orders = append(orders, order{ask: a.id, cancel: true})
	}
	p.under = slices.DeleteFunc(p.under, func(a *attempt) bool { return a.id != id })
	if id != itself && p.own {
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
	return p.itself(now)
}

// unavailable is told that id cannot get it.
func (p *pursuit) unavailable(id tracker.ID, cause wire.Cause, now time.Time) []order {
	a := p.find(id)
	if a == nil {
		return nil
	}
	switch cause {
	case wire.CauseDenied, wire.CauseUnreachable:
		p.drop(id)
		return p.itself(now)
	}
	return p.failed(id, now)
}

// busy is told that id refers to members who have been given the same.
func (p *pursuit) busy(id tracker.ID, referrals []tracker.ID, now time.Time) []order {
	if p.find(id) == nil {
		return nil
	}
	p.drop(id)
	p.heard = now
	for _, i := range p.random.Perm(len(referrals)) {
		if to := referrals[i]; to != id && to != itself && p.usable(to) && p.find(to) == nil {
			return p.ask(now, attempt{id: to, role: wire.ToHolder, owner: id, hedge: p.timing.HedgeMax})
		}
	}
	return p.again(id, now)
}

// again asks an owner that has referred in vain.
func (p *pursuit) again(owner tracker.ID, now time.Time) []order {
	if !p.usable(owner) {
		return p.next(now)
	}
	return p.ask(now, attempt{id: owner, role: wire.ToOwnerAgain, hedge: p.timing.HedgeMax})
}

// ownFailed is told that the node itself could not get it. It reports whether
// anybody else is still at it.
func (p *pursuit) ownFailed() bool {
	return len(p.under) > 0
}

// wake is told that the time that deadline returned has come.
func (p *pursuit) wake(now time.Time) (orders []order) {
	for _, a := range slices.Clone(p.under) {
		if !a.hedged && !now.Before(p.hedgeAt(a)) {
			a.hedged = true
			if a.role == wire.ToHolder {
				orders = append(orders, p.again(a.owner, now)...)
			} else {
				orders = append(orders, p.next(now)...)
			}
		}
	}
	if now.Sub(p.heard) >= p.timing.Budget || now.Sub(p.gained) >= p.timing.Patience {
		orders = append(orders, p.itself(now)...)
	}
	return orders
}

// hedgeAt returns when the silence of a member is long enough for another to be
// asked: sooner if the member says nothing at all than if it has other answers to
// give, but within the budget.
func (p *pursuit) hedgeAt(a *attempt) time.Time {
	since := a.silent
	if t := p.alive(a.id); t.After(since) {
		since = t
	}
	if latest := a.silent.Add(p.timing.Budget); since.Add(a.hedge).After(latest) {
		return latest
	}
	return since.Add(a.hedge)
}

// deadline returns when wake is to be called next; zero is never.
func (p *pursuit) deadline() (t time.Time) {
	soonest := func(u time.Time) {
		if t.IsZero() || u.Before(t) {
			t = u
		}
	}
	for _, a := range p.under {
		if !a.hedged {
			soonest(p.hedgeAt(a))
		}
	}
	if !p.own && len(p.under) > 0 {
		soonest(p.heard.Add(p.timing.Budget))
		soonest(p.gained.Add(p.timing.Patience))
	}
	return t
}

// silent returns the members whose silence made others be asked.
func (p *pursuit) silent(now time.Time) (ids []tracker.ID) {
	for _, a := range p.under {
		if a.hedged && now.Sub(a.silent) >= a.hedge {
			ids = append(ids, a.id)
		}
	}
	return ids
}
