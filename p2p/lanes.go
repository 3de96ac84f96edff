package p2p

import (
	"context"
	"fmt"
	"time"

	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const (
	lanesPerPeer = 4
	laneIdle     = 2 * time.Minute // after which a lane is closed
	dialFor      = 2 * time.Second
)

// laneSlot is a place for one lane to a peer, opened when it is needed. It is
// guarded by Peers.mu.
type laneSlot struct {
	lane    *lane
	opening *opening // while it is
}

// opening is the opening of a lane, for all who wait for it. Its results are written
// before done is closed.
type opening struct {
	done chan struct{}
	lane *lane
	err  error
}

// request sends a request to a peer on the lane on which the least is under way.
// most is how many chunks may be the answer.
func (ps *Peers) request(ctx context.Context, id tracker.ID, f wire.Frame, most int) (*call, error) {
	for {
		l, fresh, err := ps.lane(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("peer %s: %w", id, err)
		}
		c, err := l.send(ctx, f, most)
		if err == nil {
			return c, nil
		}
		if fresh || l.usable() || ctx.Err() != nil {
			return nil, fmt.Errorf("peer %s: %w", id, err)
		}
		// A lane that was idle has turned out to be closed.
	}
}

// lane returns the best lane to a peer; fresh is whether it has just been opened.
func (ps *Peers) lane(ctx context.Context, id tracker.ID) (l *lane, fresh bool, err error) {
	member, ok := ps.members.View().Peer(id)
	if !ok {
		return nil, false, errNoMember
	}
	ps.mu.Lock()
	s := ps.get(id).slot()
	if s.lane != nil && s.lane.usable() {
		defer ps.mu.Unlock()
		return s.lane, false, nil
	}
	o := s.opening
	if o == nil {
		o = &opening{done: make(chan struct{})}
		if !ps.spawn(func(ctx context.Context) { ps.open(ctx, member, s, o) }) {
			ps.mu.Unlock()
			return nil, false, errLaneClosed
		}
		s.lane, s.opening = nil, o
	}
	ps.mu.Unlock()
	select {
	case <-o.done:
		return o.lane, true, o.err
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

// slot returns the slot of the lane that is the best to use: one that has nothing to
// do, else one more, else the one that has the least. Peers.mu is held.
func (p *peer) slot() (best *laneSlot) {
	cost := func(s *laneSlot) int {
		switch {
		case s.opening != nil:
			return 3
		case s.lane == nil || !s.lane.usable():
			return 2
		}
		return 1 + 2*s.lane.load()
	}
	best = &p.lanes[0]
	least := cost(best)
	for i := range p.lanes[1:] {
		if s := &p.lanes[1+i]; cost(s) < least {
			best, least = s, cost(s)
		}
	}
	return best
}

// open opens a lane, for as long as the client runs: whoever asked for it first may
// have left.
func (ps *Peers) open(ctx context.Context, member tracker.Peer, s *laneSlot, o *opening) {
	defer close(o.done)
	dial, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	stream, err := ps.transport.Open(dial, member)
	if err == nil {
		o.lane, err = newLane(stream, ps, member.ID)
	}
	o.err = err
	ps.mu.Lock()
	defer ps.mu.Unlock()
	s.lane, s.opening = o.lane, nil
	if o.lane == nil {
		return
	}
	if !ps.spawn(func(context.Context) { o.lane.read() }) {
		o.lane.fail(errLaneClosed)
	}
}

// spawn runs f in a goroutine that ends with the client; ctx ends then. It reports
// whether that is still to come. ps.mu is held.
func (ps *Peers) spawn(f func(ctx context.Context)) bool {
	if !ps.closed {
		ps.tasks.Go(func() { f(ps.ctx) })
	}
	return !ps.closed
}

// background is spawn for those who do not hold the lock.
func (ps *Peers) background(f func(ctx context.Context)) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.spawn(f)
}

// tidy closes lanes that have not been used for a while, takes note of who is a
// member, and forgets who has long left.
func (ps *Peers) tidy() {
	idle := ps.takeLanes(func(l *lane) bool { return !l.usable() || l.idleFor() > laneIdle })
	for _, l := range idle {
		l.fail(errLaneClosed)
	}
	view := ps.members.View()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	now := ps.now()
	for _, m := range view.Peers() {
		ps.get(m.ID).seen = now
	}
	for id, p := range ps.byID {
		if now.Sub(p.seen) > strikesFadeIn && now.Sub(p.health.Heard) > strikesFadeIn && now.Sub(p.struck) > strikesFadeIn && !p.probing {
			delete(ps.byID, id)
		}
	}
}

// takeLanes takes lanes out of their slots.
func (ps *Peers) takeLanes(which func(*lane) bool) (taken []*lane) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.byID {
		for i := range p.lanes {
			if s := &p.lanes[i]; s.lane != nil && which(s.lane) {
				taken = append(taken, s.lane)
				s.lane = nil
			}
		}
	}
	return taken
}

// close ends all lanes, and all that is done in the background.
func (ps *Peers) close() {
	ps.mu.Lock()
	ps.closed = true
	ps.mu.Unlock()
	ps.stop()
	for _, l := range ps.takeLanes(func(*lane) bool { return true }) {
		l.fail(errLaneClosed)
	}
	ps.tasks.Wait()
}
