package site

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	relayclient "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
)

// Bounds of a connection through a hub.
const (
	RelayTime  = 2 * time.Minute
	RelayBytes = 1 << 20 // in each direction
)

const (
	reserveTime = 15 * time.Second
	lookEvery   = 5 * time.Second // at whether the hub is still connected
	renewEvery  = time.Minute     // for the hub forgets it when the connection ends, also for a moment
)

// relayOptions are the limits of a hub's service, which package relay has besides.
func relayOptions() []relay.Option {
	return []relay.Option{
		relay.WithLimit(&relay.RelayLimit{Duration: RelayTime, Data: RelayBytes}),
		// Sites may be in one private network; libp2p leaves such addresses out.
		relay.WithReservationAddressFilter(func(ma.Multiaddr) bool { return true }),
	}
}

// reservation is a place at a hub.
type reservation struct {
	hub   peer.AddrInfo
	asked time.Time
	until time.Time // zero: there is none
}

// keepReserved keeps a place at each hub, and says at which addresses that makes the
// site reached. libp2p's AutoRelay would leave out hubs in private networks, and not
// ask one for an hour after it has failed.
func (h *Host) keepReserved(ctx context.Context, hubs []peer.AddrInfo) error {
	if len(hubs) == 0 {
		return nil
	}
	addrs, err := h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful)
	if err != nil {
		return err
	}
	h.close = append(h.close, addrs.Close)
	places := make([]reservation, len(hubs))
	for i, hub := range hubs {
		places[i].hub = hub
	}
	lost := h.lost(hubs)
	h.tasks.Go(func() {
		var said []ma.Multiaddr
		for ctx.Err() == nil {
			for i := range places {
				h.reserve(ctx, &places[i])
			}
			now := circuits(places)
			if !slices.EqualFunc(said, now, ma.Multiaddr.Equal) && ctx.Err() == nil {
				said = now
				_ = addrs.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: now})
			}
			select {
			case <-ctx.Done():
			case <-lost:
				for i := range places {
					places[i].asked = time.Time{}
				}
			case <-time.After(lookEvery):
			}
		}
	})
	return nil
}

// lost returns a channel that tells when a connection to a hub has ended: the hub
// forgets the place with the last.
func (h *Host) lost(hubs []peer.AddrInfo) <-chan struct{} {
	lost := make(chan struct{}, 1)
	h.Network().Notify(&network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		if slices.ContainsFunc(hubs, func(hub peer.AddrInfo) bool { return hub.ID == c.RemotePeer() }) {
			select {
			case lost <- struct{}{}:
			default:
			}
		}
	}})
	return lost
}

// reserve sees to it that there is a place at a hub.
func (h *Host) reserve(ctx context.Context, r *reservation) {
	connected := h.Network().Connectedness(r.hub.ID) == network.Connected
	if connected && !r.until.IsZero() && time.Since(r.asked) < renewEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reserveTime)
	defer cancel()
	r.asked = time.Now()
	got, err := relayclient.Reserve(ctx, h, r.hub)
	if err == nil {
		r.until = got.Expiration
		return
	}
	h.log.Debug("site: the hub gives no place", "hub", r.hub.ID, "error", err)
	if !connected || r.asked.After(r.until) {
		r.until = time.Time{}
	}
}

// circuits returns the addresses of this site through the hubs.
func circuits(places []reservation) (addrs []ma.Multiaddr) {
	for _, r := range places {
		if r.until.IsZero() {
			continue
		}
		tail := ma.StringCast("/p2p/" + r.hub.ID.String() + "/p2p-circuit")
		for _, a := range r.hub.Addrs {
			addrs = append(addrs, a.Encapsulate(tail))
		}
	}
	return addrs
}
