package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// Orders that members pass on to each other. Whoever is a member may have others do these, as
// it may have them fetch; none is passed on once more.
const (
	orderPreheat  = "preheat"        // a [Preheat] for the member alone; brings its id
	orderProgress = "preheat-status" // an [orderedID]; brings the member's share of a [PreheatStatus]
	orderCancel   = "preheat-cancel" // an [orderedID]
	orderEvict    = "evict"          // an [EvictRequest]; brings [Evicted]
	orderReport   = "report"         // brings a [report]
)

const (
	orderFor    = 10 * time.Second // a member may take to answer
	reportFor   = time.Second
	reportsLast = 10 * time.Second // what a member has told is shown
	maxReports  = 64               // members that are asked: more are no picture any more
)

// orderedID names a preheat.
type orderedID struct {
	ID string `json:"id"`
}

// order does what another member passes on.
func (n *Node) order(ctx context.Context, o wire.Order, says []byte) (brought []byte, err error) {
	var answer any = struct{}{}
	switch o.Kind {
	case orderPreheat:
		var q Preheat
		if err = json.Unmarshal(says, &q); err == nil {
			q.AllNodes, q.Zone, q.At = false, nil, ""
			var p *preheating
			if p, err = n.preheat(q); err == nil {
				answer = orderedID{p.id}
			}
		}
	case orderProgress, orderCancel:
		var q orderedID
		if err = json.Unmarshal(says, &q); err == nil {
			answer, err = n.orderedPreheat(q.ID, o.Kind == orderCancel)
		}
	case orderEvict:
		var q EvictRequest
		if err = json.Unmarshal(says, &q); err == nil {
			q.Imported = q.Imported && !n.cfg.InsecureCluster // of which anybody is a member
			answer, err = n.evictHere(ctx, q)
		}
	case orderReport:
		answer = n.report()
	default:
		err = fmt.Errorf("the order %q is not known here", o.Kind)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(answer)
}

// pass has a member do something.
func (n *Node) pass(ctx context.Context, id tracker.ID, kind string, says, brought any) error {
	p, err := json.Marshal(says)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, orderFor)
	defer cancel()
	answer, err := n.cluster.client.Order(ctx, id, wire.Order{Kind: kind}, p)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, brought); err != nil {
		return fmt.Errorf("its answer is not understood: %w", err)
	}
	return nil
}

// report is what a member tells of itself.
type report struct {
	Demand Demand `json:"demand"`
	// From is what it gets from other members, from registries under "", and from parents under
	// [fromParents], in bytes per second.
	From map[tracker.ID]int64 `json:"from"`
}

func (n *Node) report() report {
	_, flows := n.traffic.latest()
	slices.SortFunc(flows, func(a, b Flow) int { return cmp.Compare(b.Rate, a.Rate) })
	r := report{Demand: n.metrics.demandSoFar(), From: make(map[tracker.ID]int64)}
	for _, f := range flows {
		if f.To == n.cluster.identity.ID() && len(r.From) < maxReports {
			r.From[f.From] = f.Rate
		}
	}
	return r
}

// reports are what other members have told.
type reports struct {
	asking sync.Mutex // held while members are asked

	mu   sync.Mutex
	told map[tracker.ID]toldReport
}

type toldReport struct {
	report
	at time.Time
}

// askMembers asks other members for their reports, and returns at once.
func (n *Node) askMembers(ctx context.Context) {
	if n.cluster == nil || !n.reports.asking.TryLock() {
		return
	}
	go func() {
		defer n.reports.asking.Unlock()
		ctx, cancel := context.WithTimeout(ctx, reportFor)
		defer cancel()
		others := n.cluster.client.Others(nil)
		_, _ = n.cluster.client.Each(others[:min(len(others), maxReports)], func(m tracker.Peer) error { // an older one tells nothing
			var r report
			if err := n.pass(ctx, m.ID, orderReport, struct{}{}, &r); err != nil {
				return err
			}
			if len(r.From) > maxReports {
				return errors.New("its report is too long")
			}
			n.reports.mu.Lock()
			defer n.reports.mu.Unlock()
			n.reports.told[m.ID] = toldReport{r, time.Now()}
			return nil
		})
	}()
}

// heard returns the reports that are new enough, and forgets others.
func (rs *reports) heard() map[tracker.ID]report {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	now := time.Now()
	all := make(map[tracker.ID]report)
	for id, r := range rs.told {
		if now.Sub(r.at) > reportsLast {
			delete(rs.told, id)
			continue
		}
		all[id] = r.report
	}
	return all
}

// savings returns what the cluster saved registries, as far as members have told.
func (n *Node) savings() Savings {
	sum, members := n.metrics.demandSoFar(), 1
	for _, r := range n.reports.heard() {
		sum, members = sum.plus(r.Demand), members+1
	}
	return sum.saved(members)
}

// flows returns what goes between members: to and from this one, and what others have told.
func (n *Node) flows() []Flow {
	_, flows := n.traffic.latest()
	all := append([]Flow{}, flows...) // a list, if an empty one
	self := n.cluster.identity.ID()
	known := map[tracker.ID]bool{"": true, fromParents: true}
	for _, p := range n.cluster.gossip.View().Peers() {
		known[p.ID] = true
	}
	for to, r := range n.reports.heard() {
		for from, rate := range r.From {
			if from != self && known[from] && rate > 0 {
				all = append(all, Flow{from, to, rate})
			}
		}
	}
	return all
}
