package decide

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

// WithDefaults returns t with defaults in place of zeros.
func (t Timing) WithDefaults() Timing {
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
	maxAsked = 10 // times that one member is asked in a pursuit
	// queuedBudgets is for how many budgets a member that has other answers to give
	// may be silent about this one: it may be queued behind them on a thin link.
	queuedBudgets = 5
	// maxPatience is how many times the patience a member may say that more and
	// more comes in, without a chunk of it.
	maxPatience = 10
)

// Itself is the ID by which a pursuit names the node that pursues.
const Itself = tracker.ID("")

// Order is what a pursuit wants done next.
type Order struct {
	Ask    tracker.ID // [Itself]: the node gets it as an owner would
	Role   wire.Role
	Owner  tracker.ID // who has referred to a holder
	Cancel bool       // what was asked is not wanted any more
}

// Candidate is an owner that may be asked.
type Candidate struct {
	ID    tracker.ID
	Hedge time.Duration // silence after which the next one is asked too
}

// Peers is what a node knows of other members.
type Peers interface {
	// Usable reports whether a member is believed to be up, and to be honest.
	Usable(tracker.ID) bool
	// LastHeard returns when anything was last heard of a member: an answer that is
	// queued behind others is no silence.
	LastHeard(tracker.ID) time.Time
}

// A Pursuit decides whom to ask for adjacent chunks of one stripe, and what to do
// when that does not help. It is told what happens and when, and answers with
// orders. It starts no goroutine, reads no clock and sends nothing, so that the
// same decisions can be simulated. It is for one goroutine.
type Pursuit struct {
	timing Timing
	random *rand.Rand
	peers  Peers

	owners []Candidate // to be asked, best first; one that was asked may come back
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

// NewPursuit returns one of a stripe that owners answer for, best first. timing has no zeros.
func NewPursuit(timing Timing, owners []Candidate, peers Peers, random *rand.Rand) *Pursuit {
	return &Pursuit{timing: timing, owners: owners, peers: peers, random: random}
}

// Start returns the first orders.
func (p *Pursuit) Start(now time.Time) []Order {
	p.asked = make(map[tracker.ID]int)
	p.heard, p.gained, p.given = now, now, now
	return p.next(now)
}

// next orders the best owner that is left to be asked, else the node itself. While
// somebody who was asked is still at it, the node itself is no hurry.
func (p *Pursuit) next(now time.Time) []Order {
	for len(p.owners) > 0 {
		c := p.owners[0]
		p.owners = p.owners[1:]
		if c.ID == Itself {
			return p.itself()
		}
		if p.askable(c.ID) {
			return p.ask(now, attempt{id: c.ID, role: wire.ToOwner, hedge: c.Hedge})
		}
	}
	if len(p.under) > 0 {
		return nil
	}
	return p.itself()
}

// askable reports whether a member may be asked: no two of its answers are awaited,
// and none is asked for ever.
func (p *Pursuit) askable(id tracker.ID) bool {
	return p.find(id) == nil && p.asked[id] < maxAsked && p.peers.Usable(id)
}

// ask has a member asked. Of what is left of the budget it may be silent for half: after two that are there is still time for
// others, before all who wait for them turn to the upstream at once.
func (p *Pursuit) ask(now time.Time, a attempt) []Order {
	a.silent = now
	a.hedge = min(a.hedge, max(p.patientUntil().Sub(now)/2, p.timing.HedgeMin))
	p.asked[a.id]++
	p.under = append(p.under, &a)
	return []Order{{Ask: a.id, Role: a.role, Owner: a.owner}}
}

func (p *Pursuit) itself() []Order {
	if p.own {
		return nil
	}
	p.own = true
	return []Order{{Ask: Itself, Role: wire.ToOwner}}
}

func (p *Pursuit) find(id tracker.ID) *attempt {
	i := slices.IndexFunc(p.under, func(a *attempt) bool { return a.id == id })
	if i < 0 {
		return nil
	}
	return p.under[i]
}

func (p *Pursuit) drop(id tracker.ID) {
	p.under = slices.DeleteFunc(p.under, func(a *attempt) bool { return a.id == id })
}

// putBack makes a cancelled attempt's owner the first that is asked next.
func (p *Pursuit) putBack(a *attempt) {
	c := Candidate{a.id, a.hedge}
	if a.role == wire.ToHolder {
		c = Candidate{a.owner, p.timing.HedgeMax}
	}
	if !slices.ContainsFunc(p.owners, func(other Candidate) bool { return other.ID == c.ID }) {
		p.owners = slices.Insert(p.owners, 0, c)
	}
}

// Progress is told that id says to be waiting, with so many bytes so far. If
// others were asked because it had been silent, they are not needed; but the
// second time that happens they go on, lest two take turns for ever.
func (p *Pursuit) Progress(id tracker.ID, bytes int64, now time.Time) (orders []Order) {
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
		orders = append(orders, Order{Ask: b.id, Cancel: true})
	}
	return orders
}

// Data is told that a chunk has come from id. One source is enough from then on;
// of the others those come back as candidates that were not found silent.
func (p *Pursuit) Data(id tracker.ID, now time.Time) (orders []Order) {
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
		orders = append(orders, Order{Ask: a.id, Cancel: true})
	}
	p.under = kept
	if id != Itself && p.own && !p.spent {
		p.own = false
		orders = append(orders, Order{Ask: Itself, Cancel: true})
	}
	return orders
}

// Failed is told that id cannot be reached, has broken off, or was wrong.
func (p *Pursuit) Failed(id tracker.ID, now time.Time) []Order {
	a := p.find(id)
	if a == nil {
		return nil
	}
	p.drop(id)
	return p.instead(a, now)
}

// instead orders who is asked because an attempt is of no use: instead of a holder,
// the owner that referred to it.
func (p *Pursuit) instead(a *attempt, now time.Time) []Order {
	if a.role == wire.ToHolder {
		return p.again(a.owner, now)
	}
	return p.next(now)
}

// NotFound is told that id does not have it. Of a holder that means nothing; an
// owner has asked the upstream, which is the node's own to hear.
func (p *Pursuit) NotFound(id tracker.ID, now time.Time) []Order {
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

// Unavailable is told that id cannot get it.
func (p *Pursuit) Unavailable(id tracker.ID, cause wire.Cause, now time.Time) []Order {
	switch cause {
	case wire.CauseDenied, wire.CauseUnreachable:
		return p.NotFound(id, now)
	}
	return p.Failed(id, now)
}

// Busy is told that id refers to members who have been given the same.
func (p *Pursuit) Busy(id tracker.ID, referrals []tracker.ID, now time.Time) []Order {
	a := p.find(id)
	if a == nil {
		return nil
	}
	p.drop(id)
	p.heard = now
	if a.role == wire.ToHolder { // it sends to as many as it may
		return p.again(a.owner, now)
	}
	for _, i := range p.random.Perm(len(referrals)) {
		if to := referrals[i]; to != id && to != Itself && p.askable(to) {
			return p.ask(now, attempt{id: to, role: wire.ToHolder, owner: id, hedge: p.timing.HedgeMax})
		}
	}
	return p.again(id, now)
}

// again asks an owner that has referred in vain.
func (p *Pursuit) again(owner tracker.ID, now time.Time) []Order {
	if p.find(owner) != nil {
		return nil
	}
	if !p.askable(owner) {
		return p.next(now)
	}
	return p.ask(now, attempt{id: owner, role: wire.ToOwnerAgain, hedge: p.timing.HedgeMax})
}

// OwnFailed is told that the node itself could not get it. Whoever else is at it
// still may, until the budget is spent.
func (p *Pursuit) OwnFailed() { p.spent = true }

// Wake is told that the time that deadline returned has come. silent are the
// members that are at fault for that: it is told of each attempt once.
func (p *Pursuit) Wake(now time.Time) (orders []Order, silent []tracker.ID) {
	for _, a := range slices.Clone(p.under) {
		if a.hedged || now.Before(p.hedgeAt(a)) {
			continue
		}
		a.hedged = true
		if now.Sub(p.peers.LastHeard(a.id)) >= a.hedge {
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
			orders = append(orders, Order{Ask: a.id, Cancel: true})
		}
		p.under = nil
	}
	return orders, silent
}

// word returns when a member was last heard, about this or, for a while, about
// anything else.
func (p *Pursuit) word(a *attempt) time.Time {
	latest := a.silent.Add(queuedBudgets * p.timing.Budget)
	t := p.peers.LastHeard(a.id)
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
func (p *Pursuit) hedgeAt(a *attempt) time.Time { return p.word(a).Add(a.hedge) }

// patientUntil returns when it is for the node itself, if nothing is heard until
// then: of anybody, or of anything that comes of their waiting.
func (p *Pursuit) patientUntil() time.Time {
	heard := p.heard
	for _, a := range p.under {
		if t := p.word(a); t.After(a.silent) && t.After(heard) {
			heard = t
		}
	}
	return earliest(heard.Add(p.timing.Budget), p.gained.Add(p.timing.Patience), p.given.Add(maxPatience*p.timing.Patience))
}

// Deadline returns when wake is to be called next; zero is never.
func (p *Pursuit) Deadline() (t time.Time) {
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

// Owed returns the owners who have referred to holders that are still being asked: where one of
// these has given the stripe, its owner is told.
func (p *Pursuit) Owed() (owners []tracker.ID) {
	for _, a := range p.under {
		if a.role == wire.ToHolder {
			owners = append(owners, a.owner)
		}
	}
	return owners
}
