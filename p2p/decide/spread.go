package decide

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

const (
	spreadFor  = 2 * time.Minute // that members are taken to have a stripe, after the last request
	maxSpreads = 4096
	maxPlaces  = 8192 // members that are known to have one stripe, or to be about to
	maxAgain   = 6    // referrals of one member in a row, before the owner sends it the stripe
	choices    = 4    // members that are compared before one is referred to
	maxLook    = 64   // that are looked at for that
	enough     = 8    // stripes that a holder sends at once, of who sends less itself
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
	Late    bool // it has waited for so long that it is served
	// Stuck reports whether the asker takes nothing of what it is being sent.
	Stuck func(now time.Time) bool
	// Decided is told the verdict, once, maybe before Enter returns. It neither waits nor calls
	// the Spreads.
	Decided func(Verdict)
}

// spread says from whom members have one stripe: a tree, whose root is the owner. Who is referred
// to a member that is being sent the stripe itself gets it as it arrives there.
type spread struct {
	places  map[tracker.ID]*place
	known   []*place // whom others may be referred to
	serving []*place // to whom the owner sends it
	waiting []*Request
	used    time.Time
}

// place is a member that has a stripe or is about to.
type place struct {
	id      tracker.ID
	room    int // members that may still be referred to it
	all     bool
	listed  bool // in known
	load    int  // stripes that it was sending when it asked
	answers int  // that the owner sends it
	stuck   func(now time.Time) bool
	from    *place // whom it was referred to, while it has not come back
	again   int    // referrals in a row
}

// Spreads are the stripes that a node has been asked for as an owner. They are for one goroutine at
// a time.
type Spreads struct {
	random *rand.Rand
	all    map[Stripe]*spread
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
	if s == nil || len(s.serving)+len(s.waiting) == 0 && now.Sub(s.used) > spreadFor { // they may have lost it since
		s = &spread{places: make(map[tracker.ID]*place)}
		ss.all[k] = s
	}
	s.used = now
	if v, ok := s.decide(r, now, ss.random); ok {
		r.Decided(v)
		return
	}
	s.waiting = append(s.waiting, r)
}

// Look decides on requests that wait, for time has passed: somebody may have got stuck.
func (ss *Spreads) Look(k Stripe, now time.Time) {
	s := ss.all[k]
	for s != nil && len(s.waiting) > 0 {
		r := s.waiting[0]
		v, ok := s.decide(r, now, ss.random)
		if !ok {
			return // nor would those after it
		}
		s.waiting = s.waiting[1:]
		r.Decided(v)
	}
}

// Quit takes back a request that waits. It reports false for one that has been decided.
func (ss *Spreads) Quit(k Stripe, r *Request) bool {
	s := ss.all[k]
	if s == nil {
		return false
	}
	i := slices.Index(s.waiting, r)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	return i >= 0
}

// decide says what becomes of a request, unless it has to wait. Of those who insist, who have been
// referred again and again are served, and so is who is being sent other chunks of the stripe.
func (s *spread) decide(r *Request, now time.Time, random *rand.Rand) (v Verdict, ok bool) {
	p := s.place(r.From, r.FanOut)
	p.from, p.load = nil, r.Load
	if p.answers > 0 || r.Late || r.Insists && p.again >= maxAgain || s.moving(now) < r.FanOut {
		p.again, p.stuck = 0, r.Stuck
		p.answers++
		s.serving = append(s.serving, p)
		s.list(p)
		return Verdict{Serve: true}, true
	}
	to := s.holder(p, random)
	if to == nil {
		return v, false
	}
	to.room--
	p.from = to
	p.again++
	s.list(p)
	return Verdict{Referral: to.id}, true
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
	if p.listed || p.room <= 0 {
		return
	}
	p.listed = true
	s.known = append(s.known, p)
}

// holder returns a member that another may be referred to: of a few that have the stripe, or are
// about to, the one that has the least to send.
func (s *spread) holder(from *place, random *rand.Rand) (best *place) {
	for tries, found := 0, 0; len(s.known) > 0 && tries < maxLook && found < choices; tries++ {
		i := random.IntN(len(s.known))
		p := s.known[i]
		switch {
		case p.room <= 0 || !p.gets():
			last := len(s.known) - 1
			s.known[i] = s.known[last]
			s.known = s.known[:last]
			p.listed = false
		case p.below(from):
		default:
			found++
			if best == nil || p.load < best.load {
				best = p
			}
		}
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

// has notes that a member has all of the stripe.
func (s *spread) has(p *place) {
	p.all = true
	s.list(p)
}

// makeRoom forgets stripes that nobody is sent now. What is under way
// is bounded by the server.
func (ss *Spreads) makeRoom() {
	for k, s := range ss.all {
		if len(ss.all) < maxSpreads {
			break
		}
		if len(s.serving)+len(s.waiting) == 0 {
			delete(ss.all, k)
		}
	}
}

// Refuses reports whether a holder that sends so many stripes lets whom an owner has referred to it go back: the owner knows
// what each was sending when it asked, which is a while ago. Where all send much nobody is sent back.
func Refuses(sends, askers int) bool { return sends >= enough && sends > askers }
