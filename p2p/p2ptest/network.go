package p2ptest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

// ErrRefused is what a dead node, or one that handles no streams, answers.
var ErrRefused = errors.New("connection refused")

var (
	errReset  = errors.New("connection reset by peer")
	errClosed = errors.New("network is closed")
)

// Network connects nodes. At first it has no latency and its links have no bounds.
// It is safe for concurrent use.
type Network struct {
	mu      sync.Mutex
	latency time.Duration
	nodes   map[tracker.ID]*Node
	cuts    map[[2]tracker.ID]bool // of unordered pairs, the lower ID first
	streams map[*stream]struct{}   // one end of each
	closed  bool
	changed chan struct{} // closed when anything above has changed

	handlers sync.WaitGroup // none is added once closed is set
}

// NewNetwork returns a network without nodes.
func NewNetwork() *Network {
	return &Network{
		nodes: make(map[tracker.ID]*Node), cuts: make(map[[2]tracker.ID]bool), streams: make(map[*stream]struct{}),
		changed: make(chan struct{}),
	}
}

// Node is a node's place in the network, and its transport.
type Node struct {
	id  tracker.ID
	net *Network

	// guarded by net.mu
	handle   func(tracker.ID, p2p.Stream)
	frozen   bool
	dead     bool
	up, down *Link
	alter    func([]byte)
	in, out  int64
	opened   int
}

var _ p2p.Transport = (*Node)(nil)

// Node returns the node with an ID, which is there from the first call on.
func (n *Network) Node(id tracker.ID) *Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node(id)
}

// node is Node; n.mu is held.
func (n *Network) node(id tracker.ID) *Node {
	node := n.nodes[id]
	if node == nil {
		node = &Node{id: id, net: n}
		n.nodes[id] = node
	}
	return node
}

// change changes the network's state, and wakes whoever waits for that.
func (n *Network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// SetLatency sets how long anything takes from one node to another.
func (n *Network) SetLatency(d time.Duration) { n.change(func() { n.latency = d }) }

// SetLink bounds what a node sends and receives, in bytes per second; 0 does not.
// All its streams share it.
func (n *Network) SetLink(id tracker.ID, up, down int64) {
	n.change(func() { n.node(id).up, n.node(id).down = NewLink(up), NewLink(down) })
}

// Alter makes f change what a node sends, in pieces of any size; nil does not. f is
// called by many goroutines. No real transport lets that pass unseen: it is for
// bytes that are wrong at their origin.
func (n *Network) Alter(id tracker.ID, f func(p []byte)) { n.change(func() { n.node(id).alter = f }) }

// Freeze stops a node's traffic, as SIGSTOP or a pulled plug does: it neither sends
// nor receives, and no stream ends. Its goroutines go on.
func (n *Network) Freeze(id tracker.ID) { n.change(func() { n.node(id).frozen = true }) }

// Thaw ends what Freeze began. What was under way arrives.
func (n *Network) Thaw(id tracker.ID) { n.change(func() { n.node(id).frozen = false }) }

// Cut lets nothing pass between two nodes, in silence.
func (n *Network) Cut(a, b tracker.ID) { n.change(func() { n.cuts[pair(a, b)] = true }) }

// Heal ends what Cut began. What was under way arrives.
func (n *Network) Heal(a, b tracker.ID) { n.change(func() { delete(n.cuts, pair(a, b)) }) }

// Kill ends all streams of a node, as kill -9 does. Further ones are refused.
func (n *Network) Kill(id tracker.ID) {
	n.change(func() { n.node(id).dead = true })
	for _, s := range n.all() {
		if s.out.from == id || s.out.to == id {
			s.reset(errReset)
		}
	}
}

// Revive makes the streams of a dead node be accepted again.
func (n *Network) Revive(id tracker.ID) { n.change(func() { n.node(id).dead = false }) }

// Close ends all streams, and lets none begin. It returns when all handlers have.
func (n *Network) Close() {
	n.change(func() { n.closed = true })
	for _, s := range n.all() {
		s.reset(errClosed)
	}
	n.handlers.Wait()
}

// Traffic returns how many bytes a node has received and sent.
func (n *Network) Traffic(id tracker.ID) (in, out int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node(id).in, n.node(id).out
}

// Opened returns how many streams a node has opened.
func (n *Network) Opened(id tracker.ID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node(id).opened
}

// Streams returns how many streams are open.
func (n *Network) Streams() int { return len(n.all()) }

func (n *Network) all() []*stream {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.streams))
}

func pair(a, b tracker.ID) [2]tracker.ID { return [2]tracker.ID{min(a, b), max(a, b)} }

// Handle implements [p2p.Transport]. A later call takes the place of an earlier one,
// as when a node is started again.
func (node *Node) Handle(handle func(from tracker.ID, s p2p.Stream)) {
	node.net.change(func() { node.handle = handle })
}

// Open implements [p2p.Transport]. To a frozen node it takes as long as ctx.
func (node *Node) Open(ctx context.Context, peer tracker.Peer) (p2p.Stream, error) {
	n := node.net
	if err := n.reach(ctx, node.id, peer.ID); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	to := n.node(peer.ID)
	switch {
	case n.closed:
		return nil, errClosed
	case node.dead || to.dead || to.handle == nil:
		return nil, ErrRefused
	}
	there, back := newHalf(n, node.id, peer.ID), newHalf(n, peer.ID, node.id)
	here := &stream{out: there, in: back}
	n.streams[here] = struct{}{}
	node.opened++
	handle := to.handle
	n.handlers.Go(func() { handle(node.id, &stream{out: back, in: there, other: here}) })
	return here, nil
}

// reach takes as long as it takes to reach a node and hear of it.
func (n *Network) reach(ctx context.Context, from, to tracker.ID) error {
	for {
		n.mu.Lock()
		changed, latency, stopped := n.changed, n.latency, !n.closed && (n.node(from).frozen || n.stops(from, to))
		n.mu.Unlock()
		if !stopped {
			return sleep(ctx, 2*latency)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stops reports whether nothing gets from one node to another; n.mu is held.
func (n *Network) stops(from, to tracker.ID) bool { return n.node(to).frozen || n.cuts[pair(from, to)] }

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
