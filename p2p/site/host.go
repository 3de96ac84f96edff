package site

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/observedaddrs"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	relayclient "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	quicgo "github.com/quic-go/quic-go"

	"github.com/granary-oci/granary/p2p/libp2p"
)

// maxConns bounds the connections that others make.
const maxConns = 1024

// Config is what a [Host] needs.
type Config struct {
	Identity *libp2p.Identity
	// Listen are addresses of TCP and QUIC, as /ip4/0.0.0.0/udp/5054/quic-v1; port 0
	// is any free one; none: nobody can dial this site, but through a relay.
	Listen []ma.Multiaddr
	// Advertise are addresses at which others reach this site that it cannot know of,
	// such as a port that a router forwards. They are said before those it listens on.
	Advertise []ma.Multiaddr
	// Relays are hubs through which this site is reached. With some it is taken to be
	// one that cannot be dialled.
	Relays []peer.AddrInfo
	// RelayService connects others to sites that cannot be dialled and are connected
	// to this one. It is for a site that all can dial.
	RelayService bool
	Allow        func(peer.ID) bool // who may connect, and is dialled; nil: everybody
	// Strangers may connect, who are not dialled whatever addresses they say are theirs:
	// Allow is of those alone that are. Limits are as for strangers then.
	Strangers bool
	Log       *slog.Logger // nil: nothing is logged
}

// Host is a libp2p host. The caller closes it.
type Host struct {
	host.Host
	log   *slog.Logger
	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	swarm *swarm.Swarm
	lines lines
	kept  kept
	tasks sync.WaitGroup
	close []func() error // in reverse order
}

// NewHost returns a host that listens.
func NewHost(cfg Config) (*Host, error) {
	if cfg.RelayService && len(cfg.Relays) > 0 {
		return nil, errors.New("a site that is reached through relays cannot be one")
	}
	if cfg.Allow == nil {
		cfg.Allow = func(peer.ID) bool { return true }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &Host{log: cfg.Log, ctx: ctx, stop: cancel}
	if err := h.start(ctx, cfg); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) start(ctx context.Context, cfg Config) error {
	resources, err := cfg.resources()
	if err != nil {
		return err
	}
	h.close = append(h.close, resources.Close)
	ports, err := h.newPorts(cfg, resources)
	if err != nil {
		return err
	}
	bus := eventbus.NewBus()
	net, err := h.newSwarm(cfg, bus, resources)
	if err != nil {
		return err
	}
	seen, err := observedaddrs.NewManager(bus, net)
	if err != nil {
		return err
	}
	seen.Start(net)
	h.close = append(h.close, seen.Close)
	basic, err := basichost.NewHost(net, &basichost.HostOpts{
		EventBus:             bus,
		AddrsFactory:         func(addrs []ma.Multiaddr) []ma.Multiaddr { return slices.Concat(cfg.Advertise, addrs) },
		EnableHolePunching:   true,
		EnablePing:           true, // how others find out that a line is dead
		EnableRelayService:   cfg.RelayService,
		RelayServiceOpts:     relayOptions(),
		ObservedAddrsManager: seen,
		UserAgent:            "granary",
	})
	if err != nil {
		return err
	}
	h.Host = basic
	h.close = append(h.close, basic.Close)
	if err := h.addTransports(cfg, net, ports, resources); err != nil {
		return err
	}
	for _, a := range cfg.Listen {
		if err := net.Listen(a); err != nil {
			return fmt.Errorf("listen on %s: %w", a, err)
		}
	}
	basic.Start()
	return h.sayReachable(ctx, cfg)
}

func (c Config) resources() (network.ResourceManager, error) {
	if c.Strangers {
		return libp2p.NewStrangersResources()
	}
	return libp2p.NewResources(maxConns)
}

// lets reports whether a peer may connect.
func (c Config) lets(id peer.ID) bool { return c.Strangers || c.Allow(id) }

// gate returns who may connect, and who is dialled.
func (c Config) gate() gate { return gate{c.lets, c.Allow} }

type gate struct {
	libp2p.Gate
	dials func(peer.ID) bool
}

// InterceptPeerDial implements libp2p's ConnectionGater.
func (g gate) InterceptPeerDial(id peer.ID) bool { return g.dials(id) }

// newSwarm returns the connections of a host, that knows no transport yet.
func (h *Host) newSwarm(cfg Config, bus event.Bus, resources network.ResourceManager) (*swarm.Swarm, error) {
	key := cfg.Identity.Key()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	known, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	h.close = append(h.close, known.Close)
	if err := errors.Join(known.AddPrivKey(id, key), known.AddPubKey(id, key.GetPublic())); err != nil {
		return nil, err
	}
	net, err := swarm.NewSwarm(id, known, bus, swarm.WithConnectionGater(cfg.gate()), swarm.WithResourceManager(resources), swarm.WithDialTimeout(dialTry))
	if err != nil {
		return nil, err
	}
	h.swarm = net
	h.close = append(h.close, net.Close)
	return net, nil
}

// addTransports adds TCP, QUIC and circuits through relays.
func (h *Host) addTransports(cfg Config, net *swarm.Swarm, ports *quicreuse.ConnManager, resources network.ResourceManager) error {
	up, err := libp2p.NewUpgrader(cfg.Identity, resources, cfg.lets)
	if err != nil {
		return err
	}
	overTCP, err := tcp.NewTCPTransport(up, resources, nil)
	if err != nil {
		return err
	}
	overQUIC, err := quic.NewTransport(cfg.Identity.Key(), ports, nil, cfg.gate(), resources)
	if err != nil {
		return err
	}
	for _, t := range []transport.Transport{overTCP, overQUIC} {
		if err := net.AddTransport(t); err != nil {
			return err
		}
	}
	return relayclient.AddTransport(h.Host, up)
}

// newPorts returns the UDP ports that QUIC is spoken on.
func (h *Host) newPorts(cfg Config, resources network.ResourceManager) (*quicreuse.ConnManager, error) {
	raw, err := cfg.Identity.Key().Raw()
	if err != nil {
		return nil, err
	}
	// The keys outlive a restart, so that what was sent to the process before is
	// answered, and the other side need not wait to learn that it is gone.
	derived, err := hkdf.Key(sha256.New, raw, nil, "granary quic", 64)
	if err != nil {
		return nil, err
	}
	ports, err := quicreuse.NewConnManager(quicgo.StatelessResetKey(derived[:32]), quicgo.TokenGeneratorKey(derived[32:]),
		quicreuse.VerifySourceAddress(resources.VerifySourceAddress))
	if err == nil {
		h.close = append(h.close, ports.Close)
	}
	return ports, err
}

// sayReachable tells the parts of the host whether the site can be dialled, which is
// what the settings say: nobody is asked to try.
func (h *Host) sayReachable(ctx context.Context, cfg Config) error {
	said, err := h.EventBus().Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful)
	if err != nil {
		return err
	}
	h.close = append(h.close, said.Close)
	can := network.ReachabilityUnknown
	switch {
	case len(cfg.Relays) > 0 || len(cfg.Listen) == 0:
		can = network.ReachabilityPrivate
	case cfg.RelayService:
		can = network.ReachabilityPublic
	}
	if err := said.Emit(event.EvtLocalReachabilityChanged{Reachability: can}); err != nil {
		return err
	}
	return h.keepReserved(ctx, cfg.Relays)
}

// Close closes all connections and the listeners.
func (h *Host) Close() error {
	h.stop()
	h.tasks.Wait()
	var errs []error
	for len(h.close) > 0 {
		last := len(h.close) - 1
		errs = append(errs, h.close[last]())
		h.close = h.close[:last]
	}
	return errors.Join(errs...)
}
