package p2p

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const (
	probeEvery      = time.Second
	probeFor        = time.Second
	firstQuarantine = time.Minute
	longQuarantine  = 24 * time.Hour
	strikesFadeIn   = 24 * time.Hour
)

var (
	errNoMember = errors.New("peer is not a member")
	errSilent   = errors.New("peer is silent")
)

// Peers is what a node knows of the other members by its own experience: lanes to
// them, how fast they answer, whether they are up, and whether they have been at
// fault. It is safe for concurrent use.
type Peers struct {
	transport Transport
	members   tracker.Members
	traffic   func(in, out int64)
	now       func() time.Time
	ctx       context.Context // ends with the client
	stop      context.CancelFunc

	mu     sync.Mutex
	byID   map[tracker.ID]*peer
	closed bool
	tasks  sync.WaitGroup // goroutines; none is added from outside of them once closed is set
}

// peer is guarded by Peers.mu.
type peer struct {
	id    tracker.ID
	lanes [lanesPerPeer]laneSlot
	seen  time.Time // when it was last seen to be a member

	health  decide.Health
	probing bool // somebody finds out when it is up again

	received int64 // bytes of bodies
	sent     int64
	strikes  int
	struck   time.Time // last
	until    time.Time // of the quarantine
	fault    string    // the latest
}

func newPeers(transport Transport, members tracker.Members, traffic func(in, out int64)) *Peers {
	ps := &Peers{transport: transport, members: members, traffic: traffic, now: time.Now, byID: make(map[tracker.ID]*peer)}
	ps.ctx, ps.stop = context.WithCancel(context.Background())
	return ps
}

// get returns what is known of a peer. ps.mu is held.
func (ps *Peers) get(id tracker.ID) *peer {
	p := ps.byID[id]
	if p == nil {
		p = &peer{id: id, seen: ps.now()}
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
	return p == nil || p.health.Up() && !ps.now().Before(p.until)
}

// sound reports whether a member is to be asked even where others would do: it is
// usable, and was not silent when it was last asked.
func (ps *Peers) sound(id tracker.ID) bool {
	if !ps.usable(id) {
		return false
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byID[id]
	return p == nil || p.health.Sound()
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
		return p.health.Heard
	}
	return time.Time{}
}

// Usable and LastHeard implement [decide.Peers].
func (ps *Peers) Usable(id tracker.ID) bool { return ps.usable(id) }

func (ps *Peers) LastHeard(id tracker.ID) time.Time { return ps.lastHeard(id) }

// hear notes that a peer has answered. That it asks says nothing: it may reach this
// node and not be reached.
func (ps *Peers) hear(id tracker.ID, bytes int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.get(id)
	p.health.Hear(ps.now())
	p.received += int64(bytes)
}

// stirs notes that something comes from a peer, which may be less than a frame: that proves no more than that it is not silent.
func (ps *Peers) stirs(id tracker.ID) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.get(id).health.Heard = ps.now()
}

// gave notes what was sent to a peer that has asked.
func (ps *Peers) gave(id tracker.ID, bytes int) {
	if bytes == 0 {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.get(id).sent += int64(bytes)
}

// began notes how long an answer took to begin.
func (ps *Peers) began(id tracker.ID, took time.Duration) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.get(id).health.Began(took)
}

// hedge returns the silence of a peer after which another is asked too.
func (ps *Peers) hedge(id tracker.ID, t Timing) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.byID[id]; p != nil {
		return p.health.Hedge(t)
	}
	return t.HedgeMax
}

// fail notes that a peer was silent, or could not be reached, and finds out whether
// it is there.
func (ps *Peers) fail(id tracker.ID) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.get(id)
	if p.health.Fail(ps.now()) && !p.probing {
		p.probing = ps.spawn(func(ctx context.Context) { ps.probe(ctx, p) })
	}
}

// probe asks a peer whether it is there until it is, or is no member any more.
func (ps *Peers) probe(ctx context.Context, p *peer) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		ping, cancel := context.WithTimeout(ctx, probeFor)
		err := ps.ping(ping, p.id)
		cancel()
		if ps.probed(p, err) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// probed notes what came of a probe. It reports whether that was the last.
func (ps *Peers) probed(p *peer, err error) bool {
	_, member := ps.members.View().Peer(p.id)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	over := p.health.Probed(err == nil || !member)
	p.probing = !over
	return over
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
// time within a day makes it twice as long; but not what else comes of the same
// fault, in answers that were under way.
func (ps *Peers) blame(id tracker.ID, err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.get(id)
	now := ps.now()
	p.fault = err.Error()
	if now.Before(p.until) {
		return
	}
	if now.Sub(p.struck) > strikesFadeIn {
		p.strikes = 0
	}
	p.struck = now
	p.until = now.Add(min(firstQuarantine<<min(p.strikes, 16), longQuarantine))
	p.strikes++
}

// PeerStatus is what a node says of another member.
type PeerStatus struct {
	tracker.Peer
	State       string        `json:"state"`    // up, down, quarantined, draining or self
	P95         time.Duration `json:"p95"`      // of what its answers took to begin
	Received    int64         `json:"received"` // bytes of chunks and of what else has a body
	Sent        int64         `json:"sent"`     // the same, to the member
	Strikes     int           `json:"strikes"`  // wrong bytes or claims within a day
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
			s.P95, s.Received, s.Sent, s.Strikes, s.Fault = p.health.P95(), p.received, p.sent, p.strikes, p.fault
			if now.Before(p.until) {
				s.Quarantined = p.until
			}
			if !p.health.Up() {
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

// corrupt reports whether err says that a peer's bytes were wrong.
func corrupt(err error) bool { return chunk.IsCorrupt(err) || errors.Is(err, errBroken) }
