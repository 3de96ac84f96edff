package libp2p

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/granary-oci/granary/tracker"
)

// member reports whether the membership has this peer now.
func (h *Host) member(id tracker.ID) bool {
	_, ok := h.members.View().Peer(id)
	return ok
}

// lets is the gate that connections pass when the other side has proven its ID.
func (h *Host) lets(id peer.ID) bool {
	ok := h.member(tracker.ID(id.String()))
	if !ok {
		h.log.Debug("p2p: connection refused: not a member", "peer", id)
	}
	return ok
}

// watch closes the connections of peers that have left the membership, when they
// have stayed away for the grace period.
func (h *Host) watch() {
	left := make(map[tracker.ID]time.Time) // when a peer with connections was first seen missing
	for {
		changed := h.members.Changed() // before the view, so that no change is missed
		next := h.cutOff(left, time.Now())
		timer := time.NewTimer(next)
		select {
		case <-changed:
		case <-timer.C:
		case <-h.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// cutOff closes the connections of peers that are missing for the grace period,
// keeps left up to date, and returns after how long to look again: after the grace
// period at the latest, for a peer that left while it connected.
func (h *Host) cutOff(left map[tracker.ID]time.Time, now time.Time) time.Duration {
	view, next := h.members.View(), h.grace
	conns := h.connected()
	for id := range left {
		if _, ok := view.Peer(id); ok || conns[id] == nil {
			delete(left, id)
		}
	}
	for id, cs := range conns {
		if _, ok := view.Peer(id); ok {
			continue
		}
		if _, ok := left[id]; !ok {
			left[id] = now
		}
		wait := h.grace - now.Sub(left[id])
		if wait > 0 {
			next = min(next, wait)
			continue
		}
		delete(left, id)
		closeAll(cs)
		h.log.Info("p2p: cut off a peer that left the membership", "peer", id)
	}
	return next
}

// connected returns the connections of each peer.
func (h *Host) connected() map[tracker.ID][]*conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	conns := make(map[tracker.ID][]*conn, len(h.conns))
	for id, cs := range h.conns {
		conns[id] = append([]*conn(nil), cs...)
	}
	return conns
}
