package main

import (
	"slices"
	"time"

	"github.com/granary-oci/granary/tracker"
)

// fetch is what a node gets as an owner: once, however many wait. It asks, as [p2p.Client.Held] and then the
// registry's client do: members that have all of the blob, those that may have owned the stripe before, and
// the registry.
type fetch struct {
	n    *node
	s    stripe
	left mask
	subs []func(int)
	asks []loan // members that are left to be asked
}

// loan is a member that is asked for what it has, and for how long it may be silent.
type loan struct {
	id      tracker.ID
	silence time.Duration
}

const (
	maxHolders    = 3
	maxNeighbours = 2
	silentHolder  = 2 * time.Second
	providersFor  = time.Second
	keepersFor    = 500 * time.Millisecond
)

// own gives chunks as an owner does.
func (n *node) own(s stripe, want mask, give func(int)) {
	missing := want &^ n.have[s.blob][s.n]
	f := n.fetching[s]
	if missing != 0 && f == nil {
		f = &fetch{n: n, s: s, left: missing}
		n.fetching[s] = f
		defer f.start()
	} else if missing != 0 {
		f.left |= missing &^ f.left & n.c.all(s)
	}
	if missing != 0 {
		f.subs = append(f.subs, func(i int) {
			if missing&(1<<i) != 0 {
				missing &^= 1 << i
				give(i)
			}
		})
	}
	for i := range maxStripe {
		if bit := mask(1) << i; want&bit != 0 && n.have[s.blob][s.n]&bit != 0 {
			give(i)
		}
	}
}

func (f *fetch) start() {
	n := f.n
	n.providers(f.s.blob, func(ids []tracker.ID) {
		n.random.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		slices.SortStableFunc(ids, func(a, b tracker.ID) int { return n.view.Distance(a) - n.view.Distance(b) })
		for _, id := range ids[:min(len(ids), maxHolders)] {
			f.asks = append(f.asks, loan{id, silentHolder})
		}
		asked := 0
		for _, p := range n.roster.owners(n.peer.Zone, tracker.StripeKey(n.c.blobs[f.s.blob].digest, f.s.n)) {
			if p.ID != n.peer.ID && asked < maxNeighbours {
				asked++
				if a := n.health[p.ID]; n.Usable(p.ID) && (a == nil || a.Sound()) {
					f.asks = append(f.asks, loan{p.ID, n.c.Timing.HedgeMax})
				}
			}
		}
		f.next()
	})
}

// next asks the next member, or the registry.
func (f *fetch) next() {
	if f.left == 0 || f.n.dead {
		return
	}
	if len(f.asks) == 0 {
		f.n.bodies.enter(f.ask)
		return
	}
	l := f.asks[0]
	f.asks = f.asks[1:]
	f.borrow(l)
}

// borrow asks one member for what it has.
func (f *fetch) borrow(l loan) {
	n, to := f.n, f.n.c.byID[l.id]
	heard, over := n.c.now, false
	end := func() {
		if !over {
			over = true
			f.next()
		}
	}
	var watch func()
	watch = func() {
		if quiet := n.c.now - heard; over || f.left == 0 || n.dead {
			return
		} else if quiet >= l.silence {
			n.fail(l.id)
			end()
			return
		}
		n.c.at(heard+l.silence, watch)
	}
	n.c.at(heard+l.silence, watch)
	n.net.tell(&n.host, &to.host, func() {
		flow := n.net.flow(&to.host, &n.host)
		for i := range maxStripe {
			bit := mask(1) << i
			if f.left&bit == 0 {
				continue
			}
			if to.have[f.s.blob][f.s.n]&bit == 0 {
				break
			}
			size := n.c.chunkSize(f.s, i)
			flow.push(size, func() {
				heard = n.c.now
				if over || to.liar {
					n.dup += size
					if !over && to.liar {
						n.knows(l.id).until = n.c.time().Add(time.Minute)
						end()
					}
					return
				}
				f.came(i, size)
			})
		}
		n.net.tell(&to.host, &n.host, func() {
			heard = n.c.now
			n.knows(l.id).Hear(n.c.time())
			if len(flow.queue)+flow.under == 0 && f.left != 0 {
				end()
			}
		})
		var progress func()
		progress = func() {
			if !over && len(flow.queue)+flow.under > 0 && !to.dead {
				n.net.tell(&to.host, &n.host, func() { heard = n.c.now })
				n.c.after(nextProgress, progress)
			}
		}
		n.c.after(firstProgress, progress)
	})
}

// ask asks the registry.
func (f *fetch) ask() {
	n, c := f.n, f.n.c
	flow := c.flow(&c.registry, &n.host)
	c.requests++
	n.told++
	c.after(2*flow.delay+c.First, func() {
		for i := range maxStripe {
			if f.left&(1<<i) == 0 {
				continue
			}
			size := c.chunkSize(f.s, i)
			flow.push(size, func() {
				c.served += size
				n.fetched += size
				f.came(i, size)
				if f.left == 0 {
					n.bodies.leave()
				}
			})
		}
	})
}

func (f *fetch) came(i int, size int64) {
	n := f.n
	if f.left&(1<<i) == 0 {
		n.dup += size
		return
	}
	f.left &^= 1 << i
	if f.left == 0 {
		delete(n.fetching, f.s)
	}
	n.give(f.s, i)
	for _, give := range f.subs {
		give(i)
	}
	n.advance()
}

// known is what keepers have said of the providers of a blob, or are being asked.
type known struct {
	ids   []tracker.ID
	until time.Duration
	wait  []func([]tracker.ID)
}

// providers asks the keepers of a blob who has all of it, once for all who want to know within a second.
func (n *node) providers(blob int, said func([]tracker.ID)) {
	k := n.known[blob]
	switch {
	case k != nil && k.wait != nil:
		k.wait = append(k.wait, said)
		return
	case k != nil && n.c.now < k.until:
		said(slices.Clone(k.ids))
		return
	}
	k = &known{wait: []func([]tracker.ID){said}}
	n.known[blob] = k
	end := func(ids []tracker.ID) {
		if k.wait == nil {
			return
		}
		k.ids = slices.DeleteFunc(ids, func(id tracker.ID) bool { return id == n.peer.ID || !n.Usable(id) })
		k.until = n.c.now + providersFor
		wait := k.wait
		k.wait = nil
		for _, f := range wait {
			f(slices.Clone(k.ids))
		}
	}
	d := n.c.blobs[blob].digest
	left := 0
	for _, p := range n.roster.keepers(string(d)) {
		to := n.c.byID[p.ID]
		if p.ID != n.peer.ID && !n.Usable(p.ID) {
			continue
		}
		left++
		n.net.tell(&n.host, &to.host, func() {
			ids := to.announced.Of(d)
			n.net.tell(&to.host, &n.host, func() {
				if left--; len(ids) > 0 || left == 0 {
					end(ids)
				}
			})
		})
	}
	n.c.after(keepersFor, func() { end(nil) })
}

// announce tells the keepers of a blob that this node has all of it.
func (n *node) announce(blob int) {
	d := n.c.blobs[blob].digest
	n.c.after(toldAfter, func() {
		for _, p := range n.roster.keepers(string(d)) {
			to := n.c.byID[p.ID]
			n.net.tell(&n.host, &to.host, func() { to.announced.Announce(d, n.peer.ID) })
		}
	})
}

const toldAfter = 200 * time.Millisecond // as tracker/gossip
