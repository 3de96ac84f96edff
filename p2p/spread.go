package p2p

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

const (
	fanOut       = 2                // members that one stripe is sent to at a time
	referredFor  = 10 * time.Second // that a holder is taken to be busy with who was sent to it
	maxGiven     = 256              // members that are remembered to have a stripe
	spreadFor    = 2 * time.Minute  // that they are, after the last request
	maxSpreads   = 4096
	waitForGiven = 20 * time.Second // for another to be given it
)

// spreadKey is a stripe as one host has it.
type spreadKey struct {
	host   string
	blob   digest.Digest
	stripe int
}

// spread says to whom an owner sends one stripe, and who has been given it. It is
// guarded by spreads.mu.
type spread struct {
	active  map[tracker.ID]*recipient
	given   []tracker.ID            // who has all of it, the latest last
	sent    map[tracker.ID]referral // who was referred, and is not back yet
	changed chan struct{}
	used    time.Time
}

// verdict is what becomes of a request for a stripe.
type verdict struct {
	serve     bool
	referrals []tracker.ID
	wait      <-chan struct{} // until something has changed
}

// referral is to whom a member was referred, and when.
type referral struct {
	to tracker.ID
	at time.Time
}

// holder returns a member that has the stripe and is sending it to nobody who was
// referred to it, as far as is known; or "".
func (s *spread) holder(from tracker.ID, now time.Time, random *rand.Rand) tracker.ID {
	busy := make(map[tracker.ID]bool)
	for _, r := range s.sent {
		busy[r.to] = busy[r.to] || now.Sub(r.at) < referredFor
	}
	for _, i := range random.Perm(len(s.given)) {
		if id := s.given[i]; id != from && !busy[id] {
			return id
		}
	}
	return ""
}

// give notes that a member has all of the stripe.
func (s *spread) give(to tracker.ID) {
	if slices.Contains(s.given, to) {
		return
	}
	s.given = append(s.given, to)
	s.given = s.given[max(0, len(s.given)-maxGiven):]
}

// back notes that a member is done with whom it was referred to; in vain, if it asks
// the owner again.
func (s *spread) back(from tracker.ID, inVain bool) {
	r, referred := s.sent[from]
	delete(s.sent, from)
	if referred && inVain {
		s.given = slices.DeleteFunc(s.given, func(id tracker.ID) bool { return id == r.to })
	}
}

// change wakes those who wait.
func (s *spread) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// decide says what becomes of a request by from. One that insists is served, and so
// is who is being sent other chunks of the stripe.
func (s *spread) decide(from tracker.ID, insists bool, now time.Time, random *rand.Rand) verdict {
	if insists || s.moving(now) < fanOut || s.active[from] != nil {
		return verdict{serve: true}
	}
	if id := s.holder(from, now, random); id != "" {
		s.sent[from] = referral{id, now}
		return verdict{referrals: []tracker.ID{id}}
	}
	return verdict{wait: s.changed}
}

// recipient is a member that is being sent a stripe.
type recipient struct {
	answers int
	stuck   func(now time.Time) bool // of the latest: the member takes nothing
}

// moving returns how many members are being sent the stripe, without those that have
// vanished: they would keep all others waiting.
func (s *spread) moving(now time.Time) (n int) {
	for _, r := range s.active {
		if !r.stuck(now) {
			n++
		}
	}
	return n
}

// leave notes that a member is not sent the stripe any more, and whether it has
// been given all of it.
func (s *spread) leave(to tracker.ID, all bool) {
	if r := s.active[to]; r != nil {
		if r.answers--; r.answers == 0 {
			delete(s.active, to)
		}
	}
	if all {
		s.give(to)
	}
	s.change()
}

// spreads are the stripes that this node has been asked for as an owner.
type spreads struct {
	random *rand.Rand // guarded by mu

	mu  sync.Mutex
	all map[spreadKey]*spread
}

// enter decides on a request, and notes it if it is served. stuck reports whether the
// asker takes nothing of what it is being sent.
func (ss *spreads) enter(k spreadKey, from tracker.ID, insists bool, now time.Time, stuck func(time.Time) bool) verdict {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.all[k]
	if s == nil {
		ss.makeRoom()
		s = &spread{active: make(map[tracker.ID]*recipient), sent: make(map[tracker.ID]referral), changed: make(chan struct{})}
		ss.all[k] = s
	}
	if len(s.active) == 0 && now.Sub(s.used) > spreadFor {
		s.given = nil // they may have lost it since
	}
	s.used = now
	s.back(from, insists)
	v := s.decide(from, insists, now, ss.random)
	if v.serve {
		if s.active[from] == nil {
			s.active[from] = new(recipient)
		}
		s.active[from].answers++
		s.active[from].stuck = stuck
	}
	return v
}

// leave ends what enter began.
func (ss *spreads) leave(k spreadKey, to tracker.ID, all bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.all[k]; s != nil {
		s.leave(to, all)
	}
}

// have notes that a member has got a stripe from whom it was referred to.
func (ss *spreads) have(k spreadKey, from tracker.ID) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.all[k]
	if s == nil {
		return
	}
	if _, referred := s.sent[from]; !referred {
		return
	}
	s.back(from, false)
	s.give(from)
	s.change()
}

// makeRoom forgets stripes that nobody is sent now; ss.mu is held. What is under way
// is bounded by the server.
func (ss *spreads) makeRoom() {
	for k, s := range ss.all {
		if len(ss.all) < maxSpreads {
			break
		}
		if len(s.active) == 0 {
			delete(ss.all, k)
		}
	}
}
