package main

import (
	"cmp"
	"time"

	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// errand gets a stripe for this node's readers: it does what a pursuit orders, as p2p does.
type errand struct {
	n       *node
	s       stripe
	want    mask
	pursuit *decide.Pursuit
	under   map[tracker.ID]*attempt
	timer   bool
	subs    []func(int)
	done    func()
	over    bool
}

// attempt is one member that was asked.
type attempt struct {
	e     *errand
	id    tracker.ID
	role  wire.Role
	owner tracker.ID // that gives the stripe, be it by way of others
	sent  time.Duration
	began bool
	load  int
	over  bool
	at    *answer
}

const ownersAsked = 5

func (n *node) candidates(s stripe) (all []decide.Candidate) {
	for _, p := range n.roster.owners(n.peer.Zone, tracker.StripeKey(n.c.blobs[s.blob].digest, s.n)) {
		id := p.ID
		if id == n.peer.ID {
			id = decide.Itself
		} else if !n.Usable(id) {
			continue
		}
		hedge := n.c.Timing.HedgeMax
		if a := n.health[id]; a != nil {
			hedge = a.Hedge(n.c.Timing)
		}
		all = append(all, decide.Candidate{ID: id, Hedge: hedge})
		if id == decide.Itself || len(all) == ownersAsked {
			break
		}
	}
	return all
}

// get gets a stripe, once however many want it.
func (n *node) get(s stripe) {
	if want := n.c.all(s) &^ n.have[s.blob][s.n]; want != 0 {
		n.getPart(s, want, n.turns.Leave)
		return
	}
	n.turns.Leave()
}

// getPart gets chunks of a stripe that nobody else here is getting; done is told when all have come.
func (n *node) getPart(s stripe, want mask, done func()) {
	e := &errand{n: n, s: s, want: want, done: done, under: make(map[tracker.ID]*attempt)}
	n.getting[s] = e
	owners := n.candidates(s)
	if len(owners) == 0 || owners[0].ID == decide.Itself {
		n.own(s, want, func(i int) { e.came(i) })
		return
	}
	e.pursuit = decide.NewPursuit(n.c.Timing, owners, n, n.random)
	e.obey(e.pursuit.Start(n.c.time()))
}

// from reports whether the stripe comes from an owner, be it by way of others.
func (e *errand) from(owner tracker.ID) bool {
	for _, a := range e.under {
		if a.owner == owner {
			return true
		}
	}
	return false
}

// came gives a chunk on.
func (e *errand) came(i int) bool {
	bit := mask(1) << i
	if e.want&bit == 0 {
		return false
	}
	e.want &^= bit
	for _, f := range e.subs {
		f(i)
	}
	e.n.give(e.s, i)
	if e.want == 0 && !e.over {
		e.end()
	}
	e.n.advance()
	return true
}

func (e *errand) end() {
	e.over = true
	delete(e.n.getting, e.s)
	e.done()
	for _, id := range sortedKeys(e.under) {
		a := e.under[id]
		if a.role == wire.ToHolder && e.pursuit != nil {
			for _, owner := range e.pursuit.Owed() {
				o := e.n.c.byID[owner]
				n, s := e.n, e.s
				n.net.tell(&n.host, &o.host, func() { o.spreads.Have(n.c.key(s), n.peer.ID, n.c.time()) })
			}
		}
		if !a.over {
			a.cancel()
		}
	}
}

func (e *errand) obey(orders []decide.Order) {
	for _, o := range orders {
		if o.Cancel {
			if a := e.under[o.Ask]; a != nil {
				delete(e.under, o.Ask)
				a.cancel()
			}
			continue
		}
		a := &attempt{e: e, id: o.Ask, role: o.Role, owner: cmp.Or(o.Owner, o.Ask), sent: e.n.c.now}
		e.under[o.Ask] = a
		a.begin()
	}
	e.wind()
}

// wind plans the next wake.
func (e *errand) wind() {
	if e.timer || e.over {
		return
	}
	d := e.pursuit.Deadline()
	if d.IsZero() {
		return
	}
	e.timer = true
	e.n.c.at(max(d.Sub(epoch), e.n.c.now+time.Millisecond), func() {
		e.timer = false
		if e.over || e.n.dead {
			return
		}
		now := e.n.c.time()
		if d := e.pursuit.Deadline(); d.IsZero() || d.After(now) {
			e.wind()
			return
		}
		orders, silent := e.pursuit.Wake(now)
		for _, id := range silent {
			e.n.fail(id)
		}
		e.obey(orders)
	})
}

func (a *attempt) begin() {
	e := a.e
	n := e.n
	if a.id == decide.Itself {
		n.own(e.s, e.want, func(i int) {
			if !a.over && !e.over {
				e.obey(e.pursuit.Data(a.id, n.c.time()))
				e.came(i)
			}
		})
		return
	}
	to := n.c.byID[a.id]
	want := e.want
	a.load = n.sendingTo
	n.net.tell(&n.host, &to.host, func() { to.answer(a, want) })
}

func (a *attempt) cancel() {
	a.over = true
	if a.id == decide.Itself {
		return
	}
	n, to := a.e.n, a.e.n.c.byID[a.id]
	n.net.tell(&n.host, &to.host, func() {
		if a.at != nil {
			a.at.cancel()
		}
	})
}

// hears notes a frame of the answer. It reports whether the answer is awaited.
func (a *attempt) hears() bool {
	n := a.e.n
	k := n.knows(a.id)
	k.Hear(n.c.time())
	if !a.began {
		a.began = true
		k.Began(n.c.now - a.sent)
	}
	return !a.over && !a.e.over && a.e.under[a.id] == a
}

func (a *attempt) progress(bytes int64) {
	if a.hears() {
		a.e.obey(a.e.pursuit.Progress(a.id, bytes, a.e.n.c.time()))
	}
}

func (a *attempt) data(i int, wrong bool) {
	n, size := a.e.n, a.e.n.c.chunkSize(a.e.s, i)
	if !a.hears() {
		n.dup += size
		return
	}
	if wrong {
		n.dup += size
		n.knows(a.id).until = n.c.time().Add(time.Minute)
		a.cancel()
		a.ended(func(p *decide.Pursuit, now time.Time) []decide.Order { return p.Failed(a.id, now) })
		return
	}
	a.e.obey(a.e.pursuit.Data(a.id, n.c.time()))
	if !a.e.came(i) {
		n.dup += size
	}
}

// ended tells the pursuit that the answer is over and not all is there.
func (a *attempt) ended(tell func(*decide.Pursuit, time.Time) []decide.Order) {
	a.over = true
	if a.e.over || a.e.under[a.id] != a {
		return
	}
	delete(a.e.under, a.id)
	a.e.obey(tell(a.e.pursuit, a.e.n.c.time()))
}
