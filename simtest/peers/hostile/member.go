package hostile

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/gossip"
)

// Weight is the share of a hostile member, the same as a node's by default.
const Weight = 10

// Config says who a hostile member is, and where. All fields but Zone are required.
type Config struct {
	Identity *libp2p.Identity
	P2P      string   // multiaddr to listen on
	Gossip   string   // IP:PORT to listen on
	Join     []string // members' IP:PORT
	Secrets  [][]byte // of the cluster
	Zone     string
}

// Member is a hostile member. It implements [tracker.Members].
type Member struct {
	identity *libp2p.Identity
	stranger *libp2p.Identity // a key that is no member's
	how      Behaviour
	host     *libp2p.Host
	begun    chan struct{} // closed when gossip is there
	gossip   *gossip.Gossip
	asked    atomic.Int64
	mapped   atomic.Int64
}

// Start opens a member's ports. Run makes it one.
func Start(cfg Config, how Behaviour) (*Member, error) {
	stranger, err := libp2p.NewIdentity()
	if err != nil {
		return nil, err
	}
	m := &Member{identity: cfg.Identity, stranger: stranger, how: how, begun: make(chan struct{})}
	m.host, err = libp2p.New(libp2p.Config{Identity: cfg.Identity, Listen: []string{cfg.P2P}, Members: m})
	if err != nil {
		return nil, err
	}
	m.gossip, err = gossip.Start(gossip.Config{
		Self:    tracker.Peer{ID: m.ID(), Name: "hostile", Addrs: m.host.Addrs(), Zone: cfg.Zone, Weight: Weight},
		Listen:  cfg.Gossip,
		Join:    cfg.Join,
		Secrets: cfg.Secrets,
	})
	if err != nil {
		return nil, errors.Join(err, m.host.Close())
	}
	close(m.begun)
	m.host.Handle(m.serve)
	return m, nil
}

// Run is a member until ctx ends, and then leaves.
func (m *Member) Run(ctx context.Context) error {
	err := m.gossip.Run(ctx)
	return errors.Join(err, m.gossip.Leave(context.WithoutCancel(ctx)), m.host.Close())
}

// ID returns the ID that others know it by.
func (m *Member) ID() tracker.ID { return m.identity.ID() }

// View implements [tracker.Members]. It can be had before there is any: the transport
// and the gossip each need the other's addresses.
func (m *Member) View() *tracker.View {
	select {
	case <-m.begun:
		return m.gossip.View()
	default:
		return tracker.NewView(tracker.Peer{ID: m.ID()}, nil)
	}
}

// Changed implements [tracker.Members].
func (m *Member) Changed() <-chan struct{} {
	select {
	case <-m.begun:
		return m.gossip.Changed()
	default:
		return m.begun
	}
}

// Asked returns how many requests for chunks there have been.
func (m *Member) Asked() int64 { return m.asked.Load() }

// AskedForMaps returns how many requests for parts of maps there have been.
func (m *Member) AskedForMaps() int64 { return m.mapped.Load() }

// another returns a member that is neither this one nor the asker.
func (m *Member) another(asker tracker.ID) tracker.ID {
	for _, p := range m.View().Peers() {
		if p.ID != m.ID() && p.ID != asker {
			return p.ID
		}
	}
	return asker
}
