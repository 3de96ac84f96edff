package main

import (
	"maps"
	"slices"
	"time"

	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// answer is what a member answers to an attempt, as p2p's server does.
type answer struct {
	n       *node
	a       *attempt
	s       stripe
	want    mask
	role    wire.Role
	flow    *flow
	request *decide.Request // to an owner
	whole   bool            // all of the stripe is asked for
	joined  bool            // it is sent the stripe
	seat    *queue
	sent    int64
	over    bool
	idle    bool
}

func (c *cluster) key(s stripe) decide.Stripe {
	b := c.blobs[s.blob]
	return decide.Stripe{Blob: b.digest, Size: b.striped, Number: s.n}
}

const (
	firstProgress = 20 * time.Millisecond
	nextProgress  = 200 * time.Millisecond
	waitForGiven  = 20 * time.Second
)

func (n *node) answer(a *attempt, want mask) {
	an := &answer{n: n, a: a, s: a.e.s, want: want, role: a.role, whole: want == n.c.all(a.e.s)}
	if a.over {
		return
	}
	if n.served >= maxServed {
		an.refuse(func(p *decide.Pursuit, now time.Time) []decide.Order {
			return p.Unavailable(a.id, wire.CauseOverloaded, now)
		})
		return
	}
	if a.role == wire.ToHolder && decide.Refuses(n.sendingTo, a.load) {
		an.refuse(func(p *decide.Pursuit, now time.Time) []decide.Order { return p.Busy(a.id, nil, now) })
		return
	}
	n.served++
	n.sendingTo++
	a.at = an
	an.flow = n.net.flow(&n.host, &a.e.n.host)
	n.c.after(firstProgress, an.progress)
	if a.role == wire.ToHolder {
		an.seat = &n.holding
		n.holding.enter(func() { an.lend() })
		return
	}
	an.join()
}

// progress says that the answer is being worked on.
func (an *answer) progress() {
	if an.over || an.n.dead {
		return
	}
	a, bytes := an.a, an.sent+an.n.fetched
	an.n.net.tell(&an.n.host, &a.e.n.host, func() { a.progress(bytes) })
	an.n.c.after(nextProgress, an.progress)
}

// end ends the answer on this side.
func (an *answer) end() bool {
	if an.over {
		return false
	}
	an.over = true
	an.n.served--
	if !an.idle {
		an.n.sendingTo--
	}
	if an.seat != nil {
		an.seat.leave()
	}
	if an.joined {
		an.n.spreads.Leave(an.n.c.key(an.s), an.a.e.n.peer.ID, an.want == 0 && an.whole, an.n.c.time())
	} else if an.request != nil {
		an.n.spreads.Quit(an.n.c.key(an.s), an.request)
	}
	return true
}

func (an *answer) cancel() {
	if an.flow != nil {
		an.flow.stop()
	}
	an.end()
}

func (an *answer) refuse(tell func(*decide.Pursuit, time.Time) []decide.Order) {
	a := an.a
	an.n.net.tell(&an.n.host, &a.e.n.host, func() {
		a.hears()
		a.ended(tell)
	})
}

// join waits until the asker is to be sent the stripe, or is referred.
func (an *answer) join() {
	n := an.n
	n.sendingTo--
	an.idle = true
	an.request = &decide.Request{From: an.a.e.n.peer.ID, Load: an.a.load, FanOut: decide.FanOut(n.roster.members[n.peer.Zone]), Insists: an.role == wire.ToOwnerAgain, Stuck: an.stuck, Decided: func(v decide.Verdict) {
		n.c.after(0, func() { an.decided(v) }) // when what has led to it is over
	}}
	n.spreads.Enter(n.c.key(an.s), an.request, n.c.time())
	n.c.after(waitForGiven, func() {
		if !an.over && n.spreads.Quit(n.c.key(an.s), an.request) {
			an.request.Late = true
			n.spreads.Enter(n.c.key(an.s), an.request, n.c.time())
		}
	})
}

// stuck is so of those that have crashed.
func (an *answer) stuck(time.Time) bool { return an.a.e.n.dead }

func (an *answer) decided(v decide.Verdict) {
	n := an.n
	switch {
	case v.Serve && (an.over || n.dead):
		n.spreads.Leave(n.c.key(an.s), an.a.e.n.peer.ID, false, n.c.time())
	case v.Serve:
		an.joined = true
		an.idle = false
		n.sendingTo++
		an.seat = &n.owning
		n.owning.enter(func() {
			if !an.over {
				n.own(an.s, an.want, an.send)
			}
		})
	case !an.over:
		id := an.a.id
		an.refuse(func(p *decide.Pursuit, now time.Time) []decide.Order {
			return p.Busy(id, []tracker.ID{v.Referral}, now)
		})
		an.end()
	}
}

// lend sends what is stored.
func (an *answer) lend() {
	if an.over {
		return
	}
	for i := range maxStripe {
		bit := mask(1) << i
		if an.want&bit == 0 {
			continue
		}
		if e := an.n.getting[an.s]; an.n.have[an.s.blob][an.s.n]&bit == 0 && e != nil && e.want&bit != 0 && e.from(an.a.owner) {
			e.subs = append(e.subs, func(j int) {
				if i == j {
					an.send(i)
				}
			})
			continue
		}
		if an.n.have[an.s.blob][an.s.n]&bit == 0 {
			id := an.a.id
			an.refuse(func(p *decide.Pursuit, now time.Time) []decide.Order { return p.NotFound(id, now) })
			an.end()
			return
		}
		an.send(i)
	}
}

// send sends a chunk.
func (an *answer) send(i int) {
	if an.over || an.n.dead {
		return
	}
	size := an.n.c.chunkSize(an.s, i)
	liar := an.n.liar
	an.flow.push(size, func() {
		an.sent += size
		an.want &^= 1 << i
		if an.want == 0 {
			an.end()
		}
		an.a.data(i, liar)
	})
}

func sortedKeys(m map[tracker.ID]*attempt) []tracker.ID { return slices.Sorted(maps.Keys(m)) }
