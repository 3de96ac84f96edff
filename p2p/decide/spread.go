package decide

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/tracker"
)

// SpreadFor is for how long members are taken to have a stripe, after the last request for it.
const SpreadFor = 2 * time.Minute

const (
	maxSpreads = 4096
	maxPlaces  = 8192 // members that are known to have one stripe, or to be about to
	maxAgain   = 6    // referrals of one member in a row, before the owner sends it the stripe
	choices    = 4    // members that are compared before one is referred to
	maxLook    = 64   // that are looked at for that
	enough     = 8    // stripes that a holder sends at once, of who sends less itself

	// Of requests that wait at an owner, for whatever stripe: from many on who comes for a stripe of one chunk is referred to one that
	// waits for it, and from most on to who else is about to have it.
	manyWait = 256
	mostWait = 768
)

// Stripe is a stripe of a blob as one host has it.
type Stripe struct {
	Host   string
	Blob   digest.Digest
	Size   int64 // of stripes, in bytes: with other members there are others of the same numbers
	Number int
}

// Verdict is what becomes of a request for a stripe: it is served, or referred to another member.
type Verdict struct {
	Serve    bool
	Referral tracker.ID
}

// Request is made to the owner of a stripe.
type Request struct {
	From    tracker.ID
	Load    int  // stripes that the asker is sending to others
	FanOut  int  // members that have the stripe from one member at a time
	Insists bool // it was referred, in vain
	Late    bool // it has waited for so long that it waits no longer
	// Stuck reports whether the asker takes nothing of what it is being sent.
	Stuck func(now time.Time) bool
	// Decided is told the verdict, once, maybe before Enter returns. It neither waits nor calls
	// the Spreads.
	Decided func(Verdict)
}

// spread says from whom members have one stripe: a tree, whose root is the owner. Who is referred
// to a member that is being sent the stripe itself gets it as it arrives there, chunk by chunk. One chunk
// does not go on before all of it is there: of such a stripe others are referred to members that have it, so that nobody is bound to
// one that will have it late.
type spread struct {
	single  bool // it is one chunk, as all of its blob are
	places  map[tracker.ID]*place
	known   []*place // whom others may be referred to
	about   []*place // who are about to have what is one chunk, and may have to do
	serving []*place // to whom the owner sends it
	waiting []*Request
	used    time.Time
}

// place is a member that has a stripe or is about to.
type place struct {
	id      tracker.ID
	room    int // members that may still be referred to it
	vain    int // that were, in vain, before it had the stripe
	all     bool
	listed  *[]*place // known or about, where it is in one of these
	load    int       // stripes that it was sending when it asked
	answers int       // that the owner sends it
	stuck   func(now time.Time) bool
	from    *place // whom it was referred to, while it has not come back
	again   int    // referrals in a row
}

// Spreads are the stripes that a node has been asked for as an owner. They are for one goroutine at
// a time.
type Spreads struct {
	random  *rand.Rand
	all     map[Stripe]*spread
	waiting int // requests, of all stripes
}

// NewSpreads returns what no stripe has been asked for yet.
func NewSpreads(random *rand.Rand) *Spreads {
	return &Spreads{random: random, all: make(map[Stripe]*spread)}
}

// Enter decides on a request, or has it wait until that can be done. What is served ends with
// Leave.
func (ss *Spreads) Enter(k Stripe, r *Request, now time.Time) {
	s := ss.all[k]
	if s == nil {
		ss.makeRoom()
	}
	if s == nil || s.old(now) { // they may have lost it since
		s = &spread{single: k.Size == chunk.Size, places: make(map[tracker.ID]*place)}
		ss.all[k] = s
	}
	s.used = now
	others := ss.waiting
	if r.Late { // for this one it is as if all places were taken
		others = mostWait
	}
	if v, ok := s.decide(r, others, now, ss.random); ok {
		r.Decided(v)
		return
	}
	s.waiting = append(s.waiting, r)
	ss.waiting++
}

// Look decides on requests that wait, for time has passed: somebody may have got stuck.
func (ss *Spreads) Look(k Stripe, now time.Time) {
	s := ss.all[k]
	for s != nil && len(s.waiting) > 0 {
		r := s.waiting[0]
		v, ok := s.decide(r, 0, now, ss.random)
		if !ok {
			return // it is its turn, whatever would become of those after it
		}
		s.waiting = s.waiting[1:]
		ss.waiting--
		r.Decided(v)
	}
}

// Forget forgets stripes that nobody has asked for in [SpreadFor] and nobody is sent now: of each, as many members are remembered
// as have asked. It returns how many stripes are left.
func (ss *Spreads) Forget(now time.Time) (left int) {
	maps.DeleteFunc(ss.all, func(_ Stripe, s *spread) bool { return s.old(now) })
	return len(ss.all)
}

func (s *spread) idle() bool { return len(s.serving)+len(s.waiting) == 0 }

func (s *spread) old(now time.Time) bool { return s.idle() && now.Sub(s.used) > SpreadFor }

// Quit takes back a request that waits. It reports false for one that has been decided.
func (ss *Spreads) Quit(k Stripe, r *Request) bool {
	s := ss.all[k]
	if s == nil {
		return false
	}
	i := slices.Index(s.waiting, r)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		ss.waiting--
	}
	return i >= 0
}

// decide says what becomes of a request, unless it has to wait. Of those who insist, who have been
// referred again and again are served, and so is who is being sent other chunks of the stripe. Others are how many wait already,
// so that one more may be too many; for one that has its turn they are none.
func (s *spread) decide(r *Request, others int, now time.Time, random *rand.Rand) (v Verdict, ok bool) {
	p := s.place(r.From, r.FanOut)
	s.comesBack(p, r.Insists)
	p.load = r.Load
	if p.answers > 0 || r.Late && !s.single || r.Insists && p.again >= maxAgain || s.moving(now) < r.FanOut {
		return s.serve(p, r), true
	}
	to := s.holder(&s.known, p, random)
	if to == nil && s.single {
		to = s.squeeze(p, others, random)
	}
	switch {
	case to != nil:
		return s.refer(p, to), true
	case r.Late:
		return s.serve(p, r), true
	}
	return v, false
}

// comesBack notes that a member asks, which may have been referred to another: in vain if it insists.
func (s *spread) comesBack(p *place, insists bool) {
	switch from := p.from; {
	case from == nil:
	case !insists:
		from.room++
		s.list(from)
	case !from.all:
		from.vain++
	}
	p.from = nil
}

// squeeze returns whom a member may be referred to where so many others wait that it is not to.
func (s *spread) squeeze(from *place, others int, random *rand.Rand) (to *place) {
	if others >= manyWait {
		to = s.waiter(from, random)
	}
	if to == nil && others >= mostWait {
		to = s.holder(&s.about, from, random)
	}
	return to
}

func (s *spread) serve(p *place, r *Request) Verdict {
	p.again, p.stuck = 0, r.Stuck
	p.answers++
	s.serving = append(s.serving, p)
	s.list(p)
	return Verdict{Serve: true}
}

func (s *spread) refer(p, to *place) Verdict {
	to.room--
	p.from = to
	p.again++
	s.list(p)
	return Verdict{Referral: to.id}
}

// place returns what is known of a member, to which room others may be referred at a time. To those that are too many nobody is.
func (s *spread) place(id tracker.ID, room int) *place {
	p := s.places[id]
	if p == nil {
		p = &place{id: id}
		if len(s.places) < maxPlaces {
			p.room = room
			s.places[id] = p
		}
	}
	return p
}

// list makes a member one of those that others are referred to.
func (s *spread) list(p *place) {
	to := &s.known
	if s.single && !p.all {
		to = &s.about
	}
	if p.listed == to || p.room <= 0 {
		return
	}
	p.listed = to
	*to = append(*to, p)
}

// holder returns a member of a list that another may be referred to: of a few that have the stripe, or are
// about to, the one that has the least to send.
func (s *spread) holder(list *[]*place, from *place, random *rand.Rand) (best *place) {
	for tries, found := 0, 0; len(*list) > 0 && tries < maxLook && found < choices; tries++ {
		i := random.IntN(len(*list))
		p := (*list)[i]
		switch {
		case p.listed != list: // it has come to the other one
			drop(list, i)
		case p.room <= 0 || !p.gets():
			drop(list, i)
			p.listed = nil
		case p.below(from):
		default:
			found++
			best = idler(best, p)
		}
	}
	return best
}

// drop takes a member out of a list, whose order is of no matter.
func drop(list *[]*place, i int) {
	last := len(*list) - 1
	(*list)[i] = (*list)[last]
	*list = (*list)[:last]
}

// waiter returns a member that waits for the stripe, as holder does one that has it.
func (s *spread) waiter(from *place, random *rand.Rand) (best *place) {
	for tries, found := 0, 0; len(s.waiting) > 0 && tries < maxLook && found < choices; tries++ {
		p := s.places[s.waiting[random.IntN(len(s.waiting))].From]
		if p != nil && p.room > 0 && !p.below(from) {
			found++
			best = idler(best, p)
		}
	}
	return best
}

// idler returns which of two members has less to send.
func idler(best, p *place) *place {
	if best == nil || p.load < best.load {
		return p
	}
	return best
}

// gets reports whether a member has the stripe or is about to.
func (p *place) gets() bool { return p.all || p.answers > 0 || p.from != nil }

// below reports whether what p gets comes by way of other: they would wait for each other.
func (p *place) below(other *place) bool {
	for q := p; q != nil; q = q.from {
		if q == other {
			return true
		}
	}
	return false
}

// moving returns how many members are being sent the stripe, without those that have
// vanished: they would keep all others waiting.
func (s *spread) moving(now time.Time) (n int) {
	for i, p := range s.serving {
		if !slices.Contains(s.serving[:i], p) && !p.stuck(now) {
			n++
		}
	}
	return n
}

// Leave ends what is served; all is whether the member has been given all of the stripe.
func (ss *Spreads) Leave(k Stripe, to tracker.ID, all bool, now time.Time) {
	s := ss.all[k]
	if s == nil {
		return
	}
	i := slices.IndexFunc(s.serving, func(p *place) bool { return p.id == to })
	if i < 0 {
		return
	}
	p := s.serving[i]
	s.serving = slices.Delete(s.serving, i, i+1)
	p.answers--
	if all {
		s.has(p)
	}
	ss.Look(k, now)
}

// Have notes that a member has got a stripe from whom it was referred to.
func (ss *Spreads) Have(k Stripe, from tracker.ID, now time.Time) {
	s := ss.all[k]
	if s == nil {
		return
	}
	p := s.places[from]
	if p == nil || p.from == nil {
		return
	}
	p.from.room++
	s.list(p.from)
	p.from, p.again = nil, 0
	s.has(p)
	ss.Look(k, now)
}

// has notes that a member has all of the stripe. Who has come back from it before may have come too early.
func (s *spread) has(p *place) {
	p.all = true
	p.room, p.vain = p.room+p.vain, 0
	s.list(p)
}

// makeRoom forgets stripes that nobody is sent now. What is under way
// is bounded by the server.
func (ss *Spreads) makeRoom() {
	for k, s := range ss.all {
		if len(ss.all) < maxSpreads {
			break
		}
		if s.idle() {
			delete(ss.all, k)
		}
	}
}

// Refuses reports whether a holder that sends so many stripes lets whom an owner has referred to it go back: the owner knows
// what each was sending when it asked, which is a while ago. Where all send much nobody is sent back.
func Refuses(sends, askers int) bool { return sends >= enough && sends > askers }
