package main

import (
	"math/rand/v2"
	"time"
)

// network is what is between hosts. Bytes are counted, not moved: in parcels, which are chunks. A
// parcel takes its turn at the sender's link, and at each link after that it queues behind what has
// come before; a link forwards what it has begun to receive. Of one flow few parcels are under way, so
// that a sender whose receiver is busy sends to others: which shares links as TCP does, about max-min
// fair. Messages without bytes take the latency alone.
type network struct {
	*loop
	random  *rand.Rand
	latency time.Duration // one way, within a zone
	between time.Duration // one way, from zone to zone
	loss    float64       // of messages that are lost and sent again
	pipes   map[[2]int]*link
	pipe    float64 // bytes per second from each zone to each other; 0 is without bound
}

// sentAgain is how long TCP waits before it sends again what was the last (RFC 6298, with the minimum that
// Linux has).
const sentAgain = 200 * time.Millisecond

// link carries bytes, one after the other.
type link struct {
	rate  float64       // bytes per second
	free  time.Duration // when all that was given to it has passed
	moved int64
}

// pass returns when n bytes have passed that begin to come at a time.
func (l *link) pass(at time.Duration, n int64) time.Duration {
	l.free = max(l.free, at) + time.Duration(float64(n)/l.rate*1e9)
	l.moved += n
	return l.free
}

// host is a machine with a link each way.
type host struct {
	net      *network
	zone     int
	up, down link
	dead     bool

	ready   []*flow // that have something to send and may, in turn
	sending bool

	told, heard int64 // messages
}

// flow is parcels from one host to another, in order.
type flow struct {
	from, to *host
	delay    time.Duration
	window   int // parcels that may be under way
	queue    []parcel
	under    int
	queued   bool // in from.ready
}

type parcel struct {
	size    int64
	arrived func()
}

func (n *network) delay(a, b *host) time.Duration {
	if a.zone == b.zone {
		return n.latency
	}
	return n.between
}

func (n *network) flow(from, to *host) *flow {
	f := &flow{from: from, to: to, delay: n.delay(from, to), window: 2}
	if f.delay > 2*time.Millisecond {
		f.window = 4
	}
	return f
}

// tell sends a message.
func (n *network) tell(from, to *host, f func()) {
	from.told++
	d := n.delay(from, to)
	if n.loss > 0 && n.random.Float64() < n.loss {
		d += sentAgain
	}
	n.after(d, func() {
		if !from.dead && !to.dead {
			to.heard++
			f()
		}
	})
}

func (f *flow) push(size int64, arrived func()) {
	f.queue = append(f.queue, parcel{size, arrived})
	f.turn()
}

// turn has the flow wait for its turn, if it has something to send and may.
func (f *flow) turn() {
	if !f.queued && len(f.queue) > 0 && f.under < f.window {
		f.queued = true
		f.from.ready = append(f.from.ready, f)
		f.from.pump()
	}
}

// stop drops what has not been sent.
func (f *flow) stop() { f.queue = nil }

// pump sends the next parcel, if none is being sent.
func (h *host) pump() {
	for !h.sending && len(h.ready) > 0 && !h.dead {
		f := h.ready[0]
		h.ready = h.ready[1:]
		f.queued = false
		if len(f.queue) > 0 {
			h.send(f)
		}
	}
}

func (h *host) send(f *flow) {
	n := h.net
	p := f.queue[0]
	f.queue = f.queue[1:]
	f.under++
	h.sending = true
	sent := h.up.pass(n.now, p.size)
	there := sent
	if l := n.between2(h.zone, f.to.zone); l != nil {
		there = max(there, l.pass(n.now, p.size))
	}
	there = max(there, f.to.down.pass(n.now, p.size)) + f.delay
	n.at(sent, func() {
		h.sending = false
		f.turn()
		h.pump()
	})
	n.at(there, func() {
		f.under--
		f.turn()
		if !f.to.dead && !f.from.dead {
			p.arrived()
		}
	})
}

// between2 returns the link from one zone to another, nil if it has no bound.
func (n *network) between2(from, to int) *link {
	if from == to {
		return nil
	}
	k := [2]int{from, to}
	l := n.pipes[k]
	if l == nil {
		l = &link{rate: n.pipe}
		if n.pipe == 0 {
			l.rate = 1e15
		}
		n.pipes[k] = l
	}
	return l
}
