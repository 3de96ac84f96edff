package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

const (
	sampleEvery = time.Second
	maxSamples  = 600     // ten minutes
	rateOver    = 3       // samples that a member's rate is the mean of
	minFlow     = 1 << 10 // bytes per second: what members tell of themselves takes less
)

// Sample is what passed through a node in the second before At, in bytes per second.
type Sample struct {
	At       time.Time        `json:"at"`
	Served   map[string]int64 `json:"served"`   // to clients, by where it came from
	Upstream int64            `json:"upstream"` // from registries
	Parents  int64            `json:"parents"`  // from other sites
	In       int64            `json:"in"`       // from other members
	Out      int64            `json:"out"`      // to them
}

// Flow is what goes from one member to another, in bytes per second.
type Flow struct {
	From tracker.ID `json:"from"` // "" for registries, [fromParents] for other sites
	To   tracker.ID `json:"to"`
	Rate int64      `json:"rate"`
}

// fromParents is where what other sites send comes from, which is the ID of nobody.
const fromParents tracker.ID = "parents"

// traffic remembers how much passed through the node in the last minutes.
type traffic struct {
	mu      sync.Mutex
	samples []Sample // the latest last
	last    totals
	peers   []map[tracker.ID]exchanged // the latest last, rateOver+1 of them
	flows   []Flow                     // to and from this node, of the latest sample
}

// totals are what the metrics count.
type totals struct {
	at                         time.Time
	served                     [len(sources)]int64
	upstream, parents, in, out int64
}

// exchanged is what came from a member and went there, in bytes.
type exchanged struct{ received, sent int64 }

func (m *metrics) totals(now time.Time) totals {
	t := totals{at: now, upstream: m.upstream.Load(), parents: m.parents.Load(), in: m.peersIn.Load(), out: m.peersOut.Load()}
	for i := range sources {
		t.served[i] = m.bySource[i].Load()
	}
	return t
}

// add takes a sample, a while after the one before.
func (t *traffic) add(now totals, self tracker.ID, peers []p2p.PeerStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.last
	t.last = now
	seconds := now.at.Sub(before.at).Seconds()
	if before.at.IsZero() || seconds <= 0 {
		return
	}
	rate := func(now, then int64) int64 { return int64(float64(now-then) / seconds) }
	s := Sample{
		At: now.at, Served: make(map[string]int64, len(sources)),
		Upstream: rate(now.upstream, before.upstream), Parents: rate(now.parents, before.parents), In: rate(now.in, before.in), Out: rate(now.out, before.out),
	}
	for i, source := range sources {
		s.Served[source] = rate(now.served[i], before.served[i])
	}
	t.samples = append(t.samples, s)
	t.samples = t.samples[max(0, len(t.samples)-maxSamples):]
	t.addPeers(self, peers, seconds)
}

// addPeers makes flows of what members' counters have grown by; t.mu is held.
func (t *traffic) addPeers(self tracker.ID, peers []p2p.PeerStatus, seconds float64) {
	now := make(map[tracker.ID]exchanged, len(peers))
	for _, p := range peers {
		if p.ID != self {
			now[p.ID] = exchanged{p.Received, p.Sent}
		}
	}
	t.peers = append(t.peers, now)
	t.peers = t.peers[max(0, len(t.peers)-rateOver-1):]
	t.flows = nil
	latest := t.samples[len(t.samples)-1]
	for from, rate := range map[tracker.ID]int64{"": latest.Upstream, fromParents: latest.Parents} {
		if rate > 0 {
			t.flows = append(t.flows, Flow{from, self, rate})
		}
	}
	then := t.peers[0]
	over := seconds * float64(len(t.peers)-1)
	for id, x := range now {
		before, known := then[id]
		if !known || over <= 0 {
			continue
		}
		// A member that was away may be counted anew.
		if rate := int64(float64(x.received-before.received) / over); rate >= minFlow {
			t.flows = append(t.flows, Flow{id, self, rate})
		}
		if rate := int64(float64(x.sent-before.sent) / over); rate >= minFlow {
			t.flows = append(t.flows, Flow{self, id, rate})
		}
	}
}

// latest returns the last sample, and the flows to and from this node.
func (t *traffic) latest() (s Sample, flows []Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.samples) > 0 {
		s = t.samples[len(t.samples)-1]
	}
	return s, slices.Clone(t.flows)
}

// History is what passed through a node in the last minutes.
type History struct {
	Every   float64  `json:"every"` // seconds from one sample to the next
	Samples []Sample `json:"samples"`
}

func (t *traffic) history() History {
	t.mu.Lock()
	defer t.mu.Unlock()
	return History{sampleEvery.Seconds(), append([]Sample{}, t.samples...)}
}

// sample takes a sample of the node.
func (n *Node) sample(now time.Time) {
	var self tracker.ID
	var peers []p2p.PeerStatus
	if c := n.cluster; c != nil {
		self, peers = c.identity.ID(), c.client.Peers().Status()
	}
	n.traffic.add(n.metrics.totals(now), self, peers)
	n.ledger.addZones(n.cfg.Zone, peers)
}

// watchTraffic takes samples until ctx ends, and tells whoever watches.
func (n *Node) watchTraffic(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			n.events.end()
			n.reports.asking.Lock() // until members that are being asked have answered
			n.reports.asking.Unlock()
			return
		case now := <-tick.C:
			n.sample(now)
			n.tellWatchers(ctx)
		}
	}
}
