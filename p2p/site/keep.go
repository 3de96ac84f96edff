package site

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// The pauses between attempts to meet a site that is kept: the first, and the longest.
	firstPause = time.Second
	longPause  = 8 * time.Second
	// unmetFor is how long such a site is dialled by who asks it something although it has not been
	// met: longer than a line is down for a moment.
	unmetFor = 12 * time.Second
)

// kept are the sites that are kept, and since when they have not been met: zero while they are.
type kept struct {
	mu    sync.Mutex
	unmet map[peer.ID]time.Time
}

// Keep stays connected to a site until the host is closed. It takes some round trips to meet
// it, for which whoever asks it something would have to wait; and of one that has not been met for a
// while nobody waits to find that out.
func (h *Host) Keep(to peer.AddrInfo) {
	h.tasks.Go(func() {
		for pause := firstPause; h.ctx.Err() == nil; {
			next := lookEvery
			if h.kept.look(to.ID, h.connected(to.ID)) {
				pause = firstPause // it has lasted
			} else if h.meet(to) {
				next = firstPause
			} else {
				next, pause = pause, min(2*pause, longPause)
			}
			select {
			case <-h.ctx.Done():
			case <-time.After(next):
			}
		}
	})
}

// meet connects to a site, and reports whether it could.
func (h *Host) meet(to peer.AddrInfo) bool {
	ctx, cancel := context.WithTimeout(h.ctx, dialWithin)
	defer cancel()
	err := h.connect(ctx, to)
	if err != nil {
		h.log.Debug("site: not met", "site", to.ID, "error", err)
	}
	return h.kept.look(to.ID, err == nil)
}

// look takes note of whether a site is met, and returns that.
func (k *kept) look(id peer.ID, met bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unmet == nil {
		k.unmet = make(map[peer.ID]time.Time)
	}
	if met {
		k.unmet[id] = time.Time{}
	} else if k.unmet[id].IsZero() {
		k.unmet[id] = time.Now()
	}
	return met
}

// givenUp returns an error if a site is kept, and has not been met for so long that it is not to be waited for.
func (k *kept) givenUp(id peer.ID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	since := k.unmet[id]
	if since.IsZero() || time.Since(since) < unmetFor {
		return nil
	}
	return fmt.Errorf("it has not been met since %s", since.UTC().Format(time.RFC3339))
}
