package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/tracker"
)

// node is a member of a cluster.
type node struct {
	host
	c      *cluster
	peer   tracker.Peer
	roster *roster
	view   *tracker.View
	random *rand.Rand

	have      [][]mask // by blob and stripe
	missing   []int    // chunks, by blob
	health    map[tracker.ID]*acquaintance
	spreads   *decide.Spreads
	waiting   map[stripe][]*answer
	getting   map[stripe]*errand
	fetching  map[stripe]*fetch
	bodies    queue // answers of the registry that are being read
	owning    queue
	holding   queue
	sendingTo int // answers with chunks
	served    int // requests that are being answered
	known     map[int]*known
	announced *tracker.Providers
	fetched   int64 // bytes from the registry

	readers []*reader
	turns   *chunk.Turns
	ahead   int // chunks that a reader has brought into the store
	free    int // chunks of memory that readers may take
	began   time.Duration
	took    time.Duration // for the image, 0 until then
	dup     int64         // bytes that came and were here, or were wrong
	liar    bool
	slow    bool
	old     [][]mask // chunks that an older version has
	lazy    []piece  // that are left to be read
	noticed bool     // others know that it is dead
}

// acquaintance is another member as a node knows it.
type acquaintance struct {
	decide.Health
	until   time.Time // of the quarantine
	probing bool
}

// A node's settings, as cmd/granary/node has them.
const (
	windowChunks   = 32
	budgetChunks   = 64
	stripesAtFirst = 2
	stripesAtOnce  = 6
	maxBodies      = 14
	maxWorking     = 192
	maxServed      = 1024
)

func (c *cluster) add() *node {
	i := len(c.nodes)
	zone := i % c.Zones
	n := &node{
		host: host{net: &c.network, zone: zone, up: link{rate: c.Up}, down: link{rate: c.Down}}, c: c,
		peer:   tracker.Peer{ID: tracker.ID(fmt.Sprintf("n%05d", i)), Zone: fmt.Sprint("z", zone), Weight: 1},
		random: rand.New(rand.NewPCG(c.Seed, uint64(i)+100)),
		health: make(map[tracker.ID]*acquaintance), getting: make(map[stripe]*errand), fetching: make(map[stripe]*fetch),
		bodies: queue{places: maxBodies}, owning: queue{places: maxWorking}, holding: queue{places: maxWorking}, free: budgetChunks,
	}
	n.known = make(map[int]*known)
	n.announced = tracker.NewProvidersAt(c.time, 1<<10, time.Hour)
	n.turns = chunk.NewTurns(stripesAtFirst, stripesAtOnce, n.random)
	n.spreads = decide.NewSpreads(n.random)
	for _, b := range c.blobs {
		n.have = append(n.have, make([]mask, b.stripes()))
		n.missing = append(n.missing, b.chunks())
	}
	c.nodes = append(c.nodes, n)
	c.byID[n.peer.ID] = n
	return n
}

func (n *node) see(r *roster) {
	n.roster, n.view = r, r.view.As(n.peer)
	n.ahead = int(decide.Ahead(r.members[n.peer.Zone]) / chunk.Size)
}

func (n *node) knows(id tracker.ID) *acquaintance {
	a := n.health[id]
	if a == nil {
		a = new(acquaintance)
		n.health[id] = a
	}
	return a
}

// Usable implements [decide.Peers].
func (n *node) Usable(id tracker.ID) bool {
	if _, member := n.view.Peer(id); !member {
		return false
	}
	a := n.health[id]
	return a == nil || a.Up() && !n.c.time().Before(a.until)
}

// LastHeard implements [decide.Peers].
func (n *node) LastHeard(id tracker.ID) time.Time {
	if a := n.health[id]; a != nil {
		return a.Heard
	}
	return time.Time{}
}

func (n *node) fail(id tracker.ID) {
	a := n.knows(id)
	if a.Fail(n.c.time()) && !a.probing {
		a.probing = true
		n.probe(id, a)
	}
}

// probe asks a member whether it is there until it is, or is no member any more.
func (n *node) probe(id tracker.ID, a *acquaintance) {
	to, answered := n.c.byID[id], false
	n.net.tell(&n.host, &to.host, func() {
		n.net.tell(&to.host, &n.host, func() { answered = true; a.Hear(n.c.time()) })
	})
	n.c.after(time.Second, func() {
		_, member := n.view.Peer(id)
		if a.Probed(answered || !member) || n.dead || n.c.left == 0 {
			a.probing = false
			return
		}
		n.probe(id, a)
	})
}

// give stores chunks of a stripe.
func (n *node) give(s stripe, i int) {
	bit := mask(1) << i
	if n.have[s.blob][s.n]&bit != 0 {
		return
	}
	n.have[s.blob][s.n] |= bit
	if n.missing[s.blob]--; n.missing[s.blob] == 0 {
		n.announce(s.blob)
	}
}

func (n *node) advance() {
	if n.lazy != nil {
		n.read()
		return
	}
	for _, r := range n.readers {
		r.advance()
	}
}

// reader reads a blob in order, as [chunk.Reader].
type reader struct {
	n     *node
	blob  int
	pos   int           // the next chunk that is to be consumed
	next  int           // the next that has not been asked for
	turns []*chunk.Turn // of the stripes from pos on, those that scouts have gone for included
	sent  int           // the first stripe beyond the window that no scout was sent for
	over  bool
}

func newReader(n *node, blob int) *reader {
	return &reader{n: n, blob: blob, turns: make([]*chunk.Turn, n.c.blobs[blob].stripes())}
}

// pull reads the image as a runtime does: three blobs at a time.
func (n *node) pull() {
	if n.dead {
		return
	}
	n.began = n.c.now
	if n.old == nil {
		n.open(0)
		return
	}
	n.providers(0, func(ids []tracker.ID) {
		if len(ids) > 0 { // who can tell the digests
			n.reuse()
		}
		n.open(0)
	})
}

func (n *node) open(blob int) {
	for ; blob < len(n.c.blobs) && len(n.readers) < 3; blob++ {
		r := newReader(n, blob)
		n.readers = append(n.readers, r)
		r.advance()
	}
}

// advance consumes what has come, and asks for more.
func (r *reader) advance() {
	n, b := r.n, r.n.c.blobs[r.blob]
	if r.over {
		return
	}
	for r.pos < b.chunks() && r.has(r.pos) {
		if r.pos == r.next {
			r.next++
		} else {
			n.free++
		}
		r.pos++
	}
	if r.pos == b.chunks() {
		r.over = true
		n.done(r)
		return
	}
	r.fill()
	if s, _ := b.at(r.pos); r.pos < r.next {
		r.turns[s].Urge()
	}
}

func (r *reader) has(i int) bool {
	s, in := r.n.c.blobs[r.blob].at(i)
	return r.n.have[r.blob][s]&(1<<in) != 0
}

// fill asks for stripes until the window or the memory is full, by the rules of [chunk.Reader] and
// [chunk.Budget].
func (r *reader) fill() {
	n, b := r.n, r.n.c.blobs[r.blob]
	end := b.chunks()
	for r.next < end {
		held := r.next - r.pos
		i, in := b.at(r.next)
		want := min(b.stripe()-in, end-r.next)
		if windowChunks-held < want || held > 0 && n.free-want < max(budgetChunks/4, held+want) || n.free < want {
			break
		}
		n.free -= want
		r.next += want
		if r.turns[i] == nil || r.turns[i].Quit() { // else a scout has gone for it
			r.ask(i)
		}
	}
	if r.pos > 0 {
		r.sendScouts(min(end, r.pos+n.ahead))
	}
}

// sendScouts has stripes beyond the window brought into the store.
func (r *reader) sendScouts(end int) {
	of := r.n.c.blobs[r.blob].stripe()
	for r.sent = max(r.sent, (r.next+of-1)/of); r.sent*of < end; r.sent++ {
		if s := (stripe{r.blob, r.sent}); r.n.have[s.blob][s.n] != r.n.c.all(s) {
			r.ask(r.sent)
		}
	}
}

// ask has a stripe fetched when it is its turn.
func (r *reader) ask(i int) {
	n, s := r.n, stripe{r.blob, i}
	r.turns[i] = n.turns.Enter(func() { n.c.after(0, func() { n.get(s) }) })
}

// done is told that a reader has got to the end.
func (n *node) done(r *reader) {
	open, last := 0, 0
	for _, r := range n.readers {
		if !r.over {
			open++
		}
		last = max(last, r.blob)
	}
	if last+1 < len(n.c.blobs) {
		nr := newReader(n, last+1)
		n.readers = append(n.readers, nr)
		nr.advance()
		return
	}
	if open == 0 {
		n.finish()
	}
}

// reuse takes chunks from the older version.
func (n *node) reuse() {
	for b := range n.old {
		for k, m := range n.old[b] {
			for i := range maxStripe {
				if m&(1<<i) != 0 {
					n.give(stripe{b, k}, i)
				}
			}
		}
	}
}

// piece is one chunk.
type piece struct {
	stripe
	i int
}

// read reads what is left of what is read lazily, chunk by chunk.
func (n *node) read() {
	for len(n.lazy) > 0 {
		p := n.lazy[0]
		if n.have[p.blob][p.n]&(1<<p.i) == 0 {
			if n.getting[p.stripe] == nil {
				n.getPart(p.stripe, 1<<p.i, func() {})
			}
			return
		}
		n.lazy = n.lazy[1:]
	}
	if n.took == 0 {
		n.finish()
	}
}

// finish is told that the node has read all.
func (n *node) finish() {
	n.took = n.c.now - n.began
	n.c.left--
}

// queue lets so many at a time.
type queue struct {
	places  int
	waiting []func()
}

func (q *queue) enter(f func()) {
	if q.places > 0 {
		q.places--
		f()
		return
	}
	q.waiting = append(q.waiting, f)
}

func (q *queue) leave() {
	if len(q.waiting) > 0 {
		f := q.waiting[0]
		q.waiting = q.waiting[1:]
		f()
		return
	}
	q.places++
}
