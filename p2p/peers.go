package p2p

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const (
	lanesPerPeer    = 4
	laneIdle        = 2 * time.Minute // after which a lane is closed
	dialFor         = 2 * time.Second
	failuresToSkip  = 2
	probeEvery      = time.Second
	probeFor        = time.Second
	firstQuarantine = time.Minute
	longQuarantine  = 24 * time.Hour
	strikesFadeIn   = 24 * time.Hour
	samples         = 64 // latencies that are remembered of a peer
)

var (
	errUnusable   = errors.New("peer is not used now")
	errNoMember   = errors.New("peer is not a member")
	errLaneClosed = errors.New("lane is closed")
)

// Peers is what a node knows of the other members by its own experience: lanes to
// them, how fast they answer, whether they are up, and whether they have been at
// fault. It is safe for concurrent use.
type Peers struct {
	transport Transport
	members   tracker.Members
	download  *Limiter
	traffic   func(in, out int64)
	now       func() time.Time

	mu   sync.Mutex
	byID map[tracker.ID]*peer
}

// peer is guarded by Peers.mu, except for lanes.
type peer struct {
	id    tracker.ID
	lanes [lanesPerPeer]laneSlot

	failures int  // in a row
	probing  bool // somebody finds out when it is up again
	heard    time.Time
	took     []time.Duration // until its latest answers began, in a ring
	at       int

	received int64 // bytes of chunks
	strikes  int
	struck   time.Time // last
	until    time.Time // of the quarantine
	fault    string    // the latest
}

// laneSlot is one lane, opened when it is needed. mu is held while it is opened.
type laneSlot struct {
	mu   chan struct{} // a lock that can be given up on
	lane *lane
}

func newPeers(transport Transport, members tracker.Members, download *Limiter, traffic func(in, out int64)) *Peers {
	return &Peers{transport: transport, members: members, download: download, traffic: traffic, now: time.Now, byID: make(map[tracker.ID]*peer)}
}

// get returns what is known of a peer. ps.mu is held.
func (ps *Peers) get(id tracker.ID) *peer {
	p := ps.byID[id]
	if p == nil {
		p = &peer{id: id}
		for i := range p.lanes {
			p.lanes[i].mu = make(chan struct{}, 1)
		}
		ps.byID[id] = p
	}
	return p
}

// usable reports whether a member is to be asked: it is believed to be up, and in
// no quarantine.
func (ps *Peers) usable(id tracker.ID) bool {
	if _, member := ps.members.View().Peer(id); !member {
		return false
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byID[id]
	return p == nil || p.failures < failuresToSkip && !ps.now().Before(p.until)
}

// trusted reports whether what a peer signs is believed: it has been a member
// since this node was started, and is in no quarantine.
func (ps *Peers) trusted(id tracker.ID) bool {
	_, member := ps.members.View().Peer(id)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byID[id]
	return (member || p != nil) && (p == nil || !ps.now().Before(p.until))
}

// lastHeard returns when anything was last heard of a peer.
func (ps *Peers) lastHeard(id tracker.ID) time.Time {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.byID[id]; p != nil {
		return p.heard
	}
	return time.Time{}
}

// hear notes that a peer is alive.
func (ps *Peers) hear(id tracker.ID, bytes int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.get(id)
	p.heard = ps.now()
	p.failures = 0
	p.received += int64(bytes)
}

// began notes how long an answer took to begin.
func (ps *Peers) began(id tracker.ID, took time.Duration) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.get(id)
	if len(p.took) < samples {
		p.took = append(p.took, took)
		return
	}
	p.took[p.at] = took
	p.at = (p.at + 1) % samples
}

// hedge returns the silence of a peer after which another is asked too: what 19 of
// 20 of its answers took to begin, doubled, within the timing's bounds.
func (ps *Peers) hedge(id tracker.ID, t Timing) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byID[id]
	if p == nil || len(p.took) < 8 {
		return t.HedgeMax // of an acquaintance so short nothing can be said
	}
	return min(max(2*p.p95(), t.HedgeMin), t.HedgeMax)
}

func (p *peer) p95() time.Duration {
	if len(p.took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(p.took))
	return sorted[len(sorted)*95/100]
}

// fail notes that a peer was silent, or could not be reached. After two times in a
// row it is skipped until it answers a probe.
func (ps *Peers) fail(id tracker.ID) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.get(id)
	p.failures++
	if p.failures >= failuresToSkip && !p.probing {
		p.probing = true
		go ps.probe(p)
	}
}

// probe asks a peer whether it is there until it is, or is no member any more.
func (ps *Peers) probe(p *peer) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), probeFor)
		err := ps.ping(ctx, p.id)
		cancel()
		_, member := ps.members.View().Peer(p.id)
		ps.mu.Lock()
		if err == nil || !member {
			p.failures, p.probing = 0, false
			ps.mu.Unlock()
			return
		}
		p.failures = failuresToSkip
		ps.mu.Unlock()
		time.Sleep(probeEvery)
	}
}

func (ps *Peers) ping(ctx context.Context, id tracker.ID) error {
	c, err := ps.request(ctx, id, wire.Frame{Type: wire.TypePing}, 0)
	if err != nil {
		return err
	}
	defer c.cancel()
	_, err = c.next(ctx)
	return err
}

// blame puts a peer into quarantine for something that only it can have done. Each
// time within a day makes it twice as long.
func (ps *Peers) blame(id tracker.ID, err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.get(id)
	now := ps.now()
	if now.Sub(p.struck) > strikesFadeIn {
		p.strikes = 0
	}
	p.struck = now
	p.fault = err.Error()
	p.until = now.Add(min(firstQuarantine<<min(p.strikes, 16), longQuarantine))
	p.strikes++
}

// PeerStatus is what a node says of another member.
type PeerStatus struct {
	tracker.Peer
	State       string        `json:"state"` // up, down, quarantined, draining or self
	P95         time.Duration `json:"p95"`   // of what its answers took to begin
	Received    int64         `json:"received"`
	Strikes     int           `json:"strikes"` // wrong bytes or claims within a day
	Fault       string        `json:"fault,omitempty"`
	Quarantined time.Time     `json:"quarantined,omitzero"` // until when
}

// Status returns what is known of every member.
func (ps *Peers) Status() []PeerStatus {
	view := ps.members.View()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	now := ps.now()
	var all []PeerStatus
	for _, m := range view.Peers() {
		s := PeerStatus{Peer: m, State: "up"}
		if p := ps.byID[m.ID]; p != nil {
			s.P95, s.Received, s.Strikes, s.Fault = p.p95(), p.received, p.strikes, p.fault
			if now.Before(p.until) {
				s.Quarantined = p.until
			}
			if p.failures >= failuresToSkip {
				s.State = "down"
			}
		}
		switch {
		case m.ID == view.Self().ID:
			s.State = "self"
		case !s.Quarantined.IsZero():
			s.State = "quarantined"
		case m.Draining:
			s.State = "draining"
		}
		all = append(all, s)
	}
	return all
}

// request sends a request to a peer on the lane on which the least is under way.
// most is how many chunks may be the answer.
func (ps *Peers) request(ctx context.Context, id tracker.ID, f wire.Frame, most int) (*call, error) {
	member, ok := ps.members.View().Peer(id)
	if !ok {
		return nil, fmt.Errorf("%s: %w", id, errNoMember)
	}
	ps.mu.Lock()
	p := ps.get(id)
	slot := p.slot()
	ps.mu.Unlock()
	for range 2 { // a lane that was idle may turn out to be closed
		l, fresh, err := ps.lane(ctx, slot, member)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", id, err)
		}
		c, err := l.send(ctx, f, most)
		if err == nil || fresh || ctx.Err() != nil {
			return c, err
		}
	}
	return nil, fmt.Errorf("%s: %w", id, errLaneClosed)
}

// slot returns the best lane's.
func (p *peer) slot() *laneSlot {
	best, least := &p.lanes[0], int64(1)<<62
	for i := range p.lanes {
		s := &p.lanes[i]
		n := int64(0) // a lane that is not open yet
		select {
		case s.mu <- struct{}{}:
			if s.lane != nil {
				n = 1 + s.lane.load() // any open lane is better than none
			} else {
				n = 2
			}
			<-s.mu
		default:
			n = 3 // it is being opened
		}
		if n < least {
			best, least = s, n
		}
	}
	return best
}

// lane returns the lane of a slot, opened if need be.
func (ps *Peers) lane(ctx context.Context, slot *laneSlot, member tracker.Peer) (l *lane, fresh bool, err error) {
	select {
	case slot.mu <- struct{}{}:
		defer func() { <-slot.mu }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	if slot.lane != nil && slot.lane.usable() {
		return slot.lane, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	s, err := ps.transport.Open(ctx, member)
	if err != nil {
		return nil, false, err
	}
	if l, err = newLane(s, ps, member.ID); err != nil {
		return nil, false, err
	}
	slot.lane = l
	return l, true, nil
}

// closeIdle closes lanes that have not been used for a while, and forgets members
// that have left and were never at fault.
func (ps *Peers) closeIdle() {
	view := ps.members.View()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for id, p := range ps.byID {
		for i := range p.lanes {
			s := &p.lanes[i]
			select {
			case s.mu <- struct{}{}:
				if s.lane != nil && s.lane.idleFor() > laneIdle {
					s.lane.fail(errLaneClosed)
				}
				if s.lane != nil && !s.lane.usable() {
					s.lane = nil
				}
				<-s.mu
			default:
			}
		}
		if _, member := view.Peer(id); !member && p.strikes == 0 && !p.probing && ps.now().Sub(p.heard) > strikesFadeIn {
			delete(ps.byID, id)
		}
	}
}

// close closes all lanes.
func (ps *Peers) close() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.byID {
		for i := range p.lanes {
			select {
			case p.lanes[i].mu <- struct{}{}:
				if l := p.lanes[i].lane; l != nil {
					l.fail(errLaneClosed)
				}
				<-p.lanes[i].mu
			default:
			}
		}
	}
}

// corrupt reports whether err says that a peer's bytes were wrong.
func corrupt(err error) bool { return chunk.IsCorrupt(err) || errors.Is(err, errBroken) }
