package site

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// The pauses between attempts to meet a site: the first, and the longest.
const (
	firstPause = time.Second
	longPause  = time.Minute
)

// Keep stays connected to a site until the host is closed. It takes some round trips to meet
// it, for which whoever asks it something would have to wait.
func (h *Host) Keep(to peer.AddrInfo) {
	h.tasks.Go(func() {
		for pause := firstPause; h.ctx.Err() == nil; {
			next := lookEvery
			if h.Network().Connectedness(to.ID) == network.Connected {
				pause = firstPause // it has lasted
			} else {
				h.meet(to)
				next, pause = pause, min(2*pause, longPause)
			}
			select {
			case <-h.ctx.Done():
			case <-time.After(next):
			}
		}
	})
}

func (h *Host) meet(to peer.AddrInfo) {
	ctx, cancel := context.WithTimeout(h.ctx, dialWithin)
	defer cancel()
	if err := h.connect(ctx, to); err != nil {
		h.log.Debug("site: not met", "site", to.ID, "error", err)
	}
}
