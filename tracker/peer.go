package tracker

import (
	"slices"
	"strings"
	"sync"
)

// ID is the libp2p peer ID of a member, in its usual text form (base58 of the
// multihash of a public key).
type ID string

// Peer is a member of the cluster, or a node of another site, of which only ID and
// Addrs are known.
type Peer struct {
	ID       ID
	Name     string   // what people call it: the host's name
	Addrs    []string // multiaddrs that it is reached at, without the peer ID
	Zone     string   // "" is a zone too
	Weight   int      // share of what is placed, relative to others'; 1 to [MaxWeight], 0 owns nothing
	Draining bool     // it is about to leave, and owns nothing
}

// MaxWeight bounds how many times as much as another a member may own.
const MaxWeight = 100

func (p *Peer) places() bool { return p.Weight > 0 && !p.Draining }

// View is one state of the membership, seen by one member. It is immutable.
type View struct {
	self  Peer
	peers []Peer // self among them, by ID
	seeds []uint64
	zones map[string]int // how many members are in each
}

// NewView returns the view of self on the cluster of peers, in any order, to which
// self is added if it is missing. Of several peers with one ID the first counts.
func NewView(self Peer, peers []Peer) *View {
	all := []Peer{self}
	for _, p := range peers {
		if p.ID != self.ID {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b Peer) int { return strings.Compare(string(a.ID), string(b.ID)) })
	all = slices.CompactFunc(all, func(a, b Peer) bool { return a.ID == b.ID })
	v := &View{self: self, peers: all, zones: make(map[string]int)}
	for _, p := range all {
		v.zones[p.Zone]++
		v.seeds = append(v.seeds, hash(string(p.ID)))
	}
	return v
}

// As returns the same members as another sees them, who need not be one. It shares their list: a
// view for each of many members takes no more memory than one.
func (v *View) As(self Peer) *View {
	return &View{self: self, peers: v.peers, seeds: v.seeds, zones: v.zones}
}

// Self returns the member whose view this is.
func (v *View) Self() Peer { return v.self }

// Peers returns all members, the viewer among them, in order of their IDs. The
// caller does not change it.
func (v *View) Peers() []Peer { return v.peers }

// Peer returns the member with an ID.
func (v *View) Peer(id ID) (Peer, bool) {
	i, ok := slices.BinarySearchFunc(v.peers, id, func(p Peer, id ID) int { return strings.Compare(string(p.ID), string(id)) })
	if !ok {
		return Peer{}, false
	}
	return v.peers[i], true
}

// Distance tells how far a member is: 0 in the viewer's zone, else 1.
func (v *View) Distance(id ID) int {
	if p, ok := v.Peer(id); ok && p.Zone == v.self.Zone {
		return 0
	}
	return 1
}

// Near returns how many members are in the viewer's zone, itself included.
func (v *View) Near() int { return max(1, v.zones[v.self.Zone]) }

// Alone reports whether there is no other member.
func (v *View) Alone() bool { return len(v.peers) == 1 }

// Members is a source of views.
type Members interface {
	// View returns the current view.
	View() *View
	// Changed returns a channel that is closed when the current view is not the
	// current one any more. Who must not miss a change takes the channel first
	// and the view then.
	Changed() <-chan struct{}
}

// Static is a [Members] that changes when it is told to.
type Static struct {
	mu      sync.Mutex
	view    *View
	changed chan struct{}
}

// NewStatic returns a membership with this view.
func NewStatic(v *View) *Static { return &Static{view: v, changed: make(chan struct{})} }

// View implements [Members].
func (s *Static) View() *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

// Changed implements [Members].
func (s *Static) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Set makes v the current view.
func (s *Static) Set(v *View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view = v
	close(s.changed)
	s.changed = make(chan struct{})
}
