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
	fanOut       = 6               // members that one stripe is sent to at a time
	maxReferred  = 3               // members in one referral
	maxGiven     = 32              // members that are remembered to have a stripe
	spreadFor    = 2 * time.Minute // that they are, after the last request
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
	active  map[tracker.ID]int // answers that each member is being sent
	given   []tracker.ID       // the latest last
	changed chan struct{}
	used    time.Time
}

// verdict is what becomes of a request for a stripe.
type verdict struct {
	serve     bool
	referrals []tracker.ID
	wait      <-chan struct{} // until something has changed
}

// decide says what becomes of a request by from. One that insists is served, and so
// is who is being sent other chunks of the stripe.
func (s *spread) decide(from tracker.ID, insists bool, random *rand.Rand) verdict {
	if insists || len(s.active) < fanOut || s.active[from] > 0 {
		return verdict{serve: true}
	}
	var to []tracker.ID
	for _, i := range random.Perm(len(s.given)) {
		if s.given[i] != from && len(to) < maxReferred {
			to = append(to, s.given[i])
		}
	}
	if len(to) > 0 {
		return verdict{referrals: to}
	}
	return verdict{wait: s.changed}
}

// leave notes that a member is not sent the stripe any more, and whether it has
// been given all of it.
func (s *spread) leave(to tracker.ID, all bool) {
	if s.active[to]--; s.active[to] == 0 {
		delete(s.active, to)
	}
	if all && !slices.Contains(s.given, to) {
		s.given = append(s.given, to)
		if len(s.given) > maxGiven {
			s.given = s.given[1:]
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// spreads are the stripes that this node has been asked for as an owner.
type spreads struct {
	random *rand.Rand // guarded by mu

	mu  sync.Mutex
	all map[spreadKey]*spread
}

// enter decides on a request, and notes it if it is served.
func (ss *spreads) enter(k spreadKey, from tracker.ID, insists bool, now time.Time) verdict {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.all[k]
	if s == nil {
		ss.makeRoom()
		s = &spread{active: make(map[tracker.ID]int), changed: make(chan struct{})}
		ss.all[k] = s
	}
	if len(s.active) == 0 && now.Sub(s.used) > spreadFor {
		s.given = nil // they may have lost it since
	}
	s.used = now
	v := s.decide(from, insists, ss.random)
	if v.serve {
		s.active[from]++
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
