package libp2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
	"golang.org/x/sync/singleflight"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

// Protocol is the name of what members say to each other on a stream.
const Protocol = protocol.ID("/granary/p2p/1")

// ErrClosed is the error of a host that was closed.
var ErrClosed = errors.New("p2p host is closed")

// ErrNotMember is the error of a peer that the membership does not have.
var ErrNotMember = errors.New("not a member")

const defaultGrace = 30 * time.Second

// Config is what a [Host] needs.
type Config struct {
	Identity *Identity
	Listen   []string        // multiaddrs, as /ip4/0.0.0.0/tcp/5052; port 0 is any free one; none: nobody can dial this member
	Members  tracker.Members // who may connect
	Grace    time.Duration   // how long a member may be missing before its connections are closed; 0: 30 s
	Log      *slog.Logger    // nil: nothing is logged
}

// Host is a member's end of all its connections. It implements [p2p.Transport].
type Host struct {
	id        peer.ID
	members   tracker.Members
	grace     time.Duration
	log       *slog.Logger
	transport transport.Transport
	resources network.ResourceManager
	listeners []transport.Listener
	protocols *multistream.MultistreamMuxer[protocol.ID]
	dials     singleflight.Group

	ready  chan struct{} // closed when handle is set
	handle func(from tracker.ID, s p2p.Stream)

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup // accepting, listening to the membership

	mu     sync.Mutex
	closed bool
	conns  map[tracker.ID][]*conn // oldest first
}

// New returns a host that listens. Streams that arrive before [Host.Handle] is
// called wait for it.
func New(cfg Config) (*Host, error) {
	resources, err := NewResources(0)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &Host{
		id:        cfg.Identity.id,
		members:   cfg.Members,
		grace:     cfg.Grace,
		log:       cfg.Log,
		resources: resources,
		protocols: multistream.NewMultistreamMuxer[protocol.ID](),
		ready:     make(chan struct{}),
		ctx:       ctx,
		cancel:    cancel,
		conns:     make(map[tracker.ID][]*conn),
	}
	if h.grace == 0 {
		h.grace = defaultGrace
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.protocols.AddHandler(Protocol, nil)
	if err := h.start(cfg); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) start(cfg Config) error {
	t, err := newTransport(cfg.Identity, h.resources, h.lets)
	if err != nil {
		return err
	}
	h.transport = t
	for _, addr := range cfg.Listen {
		l, err := h.listen(addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		h.listeners = append(h.listeners, l)
	}
	for _, l := range h.listeners {
		h.tasks.Go(func() { h.accept(l) })
	}
	h.tasks.Go(h.watch)
	return nil
}

func (h *Host) listen(addr string) (transport.Listener, error) {
	a, err := parseTCP(addr)
	if err != nil {
		return nil, err
	}
	return h.transport.Listen(a)
}

// parseTCP parses a multiaddr that is a host and a TCP port, the only kind there
// is here.
func parseTCP(addr string) (ma.Multiaddr, error) {
	a, err := ma.NewMultiaddr(addr)
	if err != nil {
		return nil, err
	}
	if len(a) != 2 || a[1].Protocol().Code != ma.P_TCP {
		return nil, fmt.Errorf("%s is not a host and a TCP port, as /ip4/192.0.2.1/tcp/5052 is", addr)
	}
	return a, nil
}

// Addrs returns the multiaddrs that the host listens on, with the ports it got. An
// address that stands for all of the host's, as 0.0.0.0, stays what it is.
func (h *Host) Addrs() []string {
	var addrs []string
	for _, l := range h.listeners {
		addrs = append(addrs, l.Multiaddr().String())
	}
	return addrs
}

// Handle implements [p2p.Transport]. The handler closes its streams; returning
// does not.
func (h *Host) Handle(handle func(from tracker.ID, s p2p.Stream)) {
	h.handle = handle
	close(h.ready)
}

// Close closes the listeners and all connections, which ends their streams. It
// does not wait for handlers to return.
func (h *Host) Close() error {
	h.mu.Lock()
	closed, conns := h.closed, h.conns
	h.closed, h.conns = true, nil
	h.mu.Unlock()
	if closed {
		return nil
	}
	h.cancel()
	var errs []error
	for _, l := range h.listeners {
		errs = append(errs, l.Close())
	}
	for _, cs := range conns {
		closeAll(cs)
	}
	h.tasks.Wait()
	return errors.Join(append(errs, h.resources.Close())...)
}

func (h *Host) accept(l transport.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			if h.ctx.Err() == nil {
				h.log.Error("p2p: no connections are accepted any more", "addr", l.Multiaddr(), "error", err)
			}
			return
		}
		if _, err := h.adopt(c, ""); err != nil {
			h.log.Debug("p2p: connection refused", "peer", c.RemotePeer(), "error", err)
		}
	}
}
