package gossip

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/granary-oci/granary/tracker"
)

const (
	maxLost  = 256            // addresses of lost members that are remembered
	lostTime = 24 * time.Hour // for how long
	tryLost  = 8              // how many of them are tried at once: most are gone for good

	maxEarly  = 64 // messages that wait for their sender to become a peer
	earlyTime = 30 * time.Second
)

// member is a peer from one start to the next.
type member struct {
	peer tracker.Peer
	boot uint64           // when it was started, in nanoseconds since 1970
	node *memberlist.Node // where to send: its name and address alone
}

// placement is one state of the membership.
type placement struct {
	view    *tracker.View
	members map[tracker.ID]member // all peers but the own
}

// roster turns what memberlist tells of nodes into states of the membership. It is
// called by memberlist while that holds its own lock: it never calls memberlist,
// and waits for nothing.
type roster struct {
	boot      uint64 // when this member was started
	name      string // of this member in memberlist
	providers *tracker.Providers
	log       *slog.Logger

	mu      sync.Mutex
	self    tracker.Peer
	nodes   map[string]member    // by name in memberlist, all whose metadata makes sense but the own
	lost    map[string]time.Time // addresses of nodes that left, until when they are tried
	state   *placement           // the last that was asked for
	stale   bool                 // state is not the current one, and changed is closed
	changed chan struct{}
	early   []earlyMessage
}

type earlyMessage struct {
	message
	until time.Time
}

func newRoster(boot uint64, self tracker.Peer, providers *tracker.Providers, log *slog.Logger) *roster {
	return &roster{
		boot: boot, name: nodeName(self.ID, boot), providers: providers, log: log,
		self:    self,
		nodes:   make(map[string]member),
		lost:    make(map[string]time.Time),
		state:   &placement{view: tracker.NewView(self, nil)},
		changed: make(chan struct{}),
	}
}

// NotifyJoin implements [memberlist.EventDelegate].
func (r *roster) NotifyJoin(n *memberlist.Node) { r.update(n) }

// NotifyUpdate implements [memberlist.EventDelegate].
func (r *roster) NotifyUpdate(n *memberlist.Node) { r.update(n) }

// NotifyLeave implements [memberlist.EventDelegate].
func (r *roster) NotifyLeave(n *memberlist.Node) {
	if n.Name == r.name {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.nodes[n.Name]; ok && !m.peer.Draining { // who drains leaves on purpose
		r.remember(n.Address())
	}
	r.remove(n.Name)
}

func (r *roster) update(n *memberlist.Node) {
	if n.Name == r.name {
		return
	}
	m, err := parseMember(n)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.log.Warn("member is not a peer", "address", n.Address(), "error", err)
		r.remove(n.Name)
		return
	}
	if m.peer.ID == r.self.ID && m.boot > r.boot {
		r.log.Error("another node uses this node's identity", "address", n.Address(), "peer", m.peer.ID)
	}
	delete(r.lost, n.Address())
	r.nodes[n.Name] = m
	r.spoil()
}

// parseMember copies what it needs: n changes when the caller returns.
func parseMember(n *memberlist.Node) (member, error) {
	id, boot, err := parseNodeName(n.Name)
	if err != nil {
		return member{}, err
	}
	p, err := decodeMeta(n.Meta)
	if err != nil {
		return member{}, fmt.Errorf("peer %s: %w", id, err)
	}
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok || ip.IsUnspecified() {
		return member{}, fmt.Errorf("peer %s: it gossips from no address", id)
	}
	p.ID, p.Addrs = id, reachable(p.Addrs, ip.Unmap())
	return member{p, boot, &memberlist.Node{Name: n.Name, Addr: append([]byte(nil), n.Addr...), Port: n.Port}}, nil
}

// remove takes a node out; r.mu is held.
func (r *roster) remove(name string) {
	if _, ok := r.nodes[name]; ok {
		delete(r.nodes, name)
		r.spoil()
	}
}

// remember notes where a node was; r.mu is held.
func (r *roster) remember(address string) {
	now := time.Now()
	for a, until := range r.lost {
		if now.After(until) {
			delete(r.lost, a)
		}
	}
	if len(r.lost) < maxLost {
		r.lost[address] = now.Add(lostTime)
	}
}

// spoil says that the state is not the current one; r.mu is held. The next is made
// when somebody asks for it, so that many events at once are one change.
func (r *roster) spoil() {
	if !r.stale {
		r.stale = true
		close(r.changed)
	}
}

// next returns a channel that is closed when there is another state.
func (r *roster) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// current returns the current state. Who is not part of it any more is forgotten as
// a provider.
func (r *roster) current() *placement {
	r.mu.Lock()
	before := r.state
	if r.stale {
		r.state = r.place()
		r.stale, r.changed = false, make(chan struct{})
	}
	now := r.state
	timely := r.takeEarly()
	r.mu.Unlock()

	for id := range before.members {
		if _, ok := now.members[id]; !ok {
			r.providers.Forget(id)
		}
	}
	for _, m := range timely {
		r.note(m)
	}
	return now
}

// place returns the state of the nodes: of those with one peer ID the one that was
// started last. Those with this member's are what it was before it was started
// again. r.mu is held.
func (r *roster) place() *placement {
	s := &placement{members: make(map[tracker.ID]member)}
	for _, m := range r.nodes {
		if other, ok := s.members[m.peer.ID]; m.peer.ID != r.self.ID && (!ok || other.boot < m.boot) {
			s.members[m.peer.ID] = m
		}
	}
	var peers []tracker.Peer
	for _, m := range s.members {
		peers = append(peers, m.peer)
	}
	s.view = tracker.NewView(r.self, peers)
	return s
}

// drain marks this member as draining.
func (r *roster) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.self.Draining = true
	r.spoil()
}

// whoami returns what this member says of itself.
func (r *roster) whoami() tracker.Peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.self
}

// has reports whether a node gossips at an address, HOST:PORT.
func (r *roster) has(address string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.nodes {
		if m.node.Address() == address {
			return true
		}
	}
	return false
}

// lostAddresses returns a few of the places where members were.
func (r *roster) lostAddresses() (addresses []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, until := range r.lost { // in random order
		if len(addresses) < tryLost && time.Now().Before(until) {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// receive takes note of what a peer says of its blobs. A message may overtake the
// news that its sender has joined, and waits for it then.
func (r *roster) receive(m message) {
	r.current()
	r.mu.Lock()
	_, known := r.state.members[m.from]
	if !known && m.from != r.self.ID && len(r.early) < maxEarly {
		r.early = append(r.early, earlyMessage{m, time.Now().Add(earlyTime)})
	}
	r.mu.Unlock()
	if known {
		r.note(m)
	}
}

// takeEarly returns the messages that have been waiting for their senders, and
// drops those that have waited for too long; r.mu is held.
func (r *roster) takeEarly() (timely []message) {
	now := time.Now()
	waiting := r.early[:0]
	for _, m := range r.early {
		if _, ok := r.state.members[m.from]; ok {
			timely = append(timely, m.message)
		} else if now.Before(m.until) {
			waiting = append(waiting, m)
		}
	}
	clear(r.early[len(waiting):])
	r.early = waiting
	return timely
}

func (r *roster) note(m message) {
	for _, d := range m.blobs {
		if m.hold {
			r.providers.Announce(d, m.from)
		} else {
			r.providers.Withdraw(d, m.from)
		}
	}
}
