package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// event is a fault at a time.
type event struct {
	At    time.Duration // since the load began
	Lasts time.Duration // until it is undone; what takes its own time lasts as long as that
	Fault string
	Node  int    // whom it hits; -1 for nobody in particular
	Seed  uint64 // of what the fault draws itself
}

// name is what happens, and to whom.
func (e event) name() string {
	if e.Node < 0 {
		return e.Fault
	}
	return fmt.Sprintf("%s of node %d", e.Fault, e.Node+1)
}

func (e event) String() string {
	s := e.name()
	if e.Lasts > 0 {
		s += fmt.Sprintf(" for %.1f s", e.Lasts.Seconds())
	}
	return s
}

// lane is a row of faults that come one after the other. Those of different lanes come together.
type lane int

const (
	ofRegistry lane = iota
	ofMachines
	ofNetwork
	ofCluster
	lanes
)

// pauses are between the faults of a lane, from and to. A registry has longer ones: while it is ill little is asserted.
var pauses = [lanes][2]time.Duration{
	ofRegistry: {5 * time.Second, 12 * time.Second},
	ofMachines: {time.Second, 4 * time.Second},
	ofNetwork:  {2 * time.Second, 6 * time.Second},
	ofCluster:  {5 * time.Second, 20 * time.Second},
}

// draw returns what happens in a run of some length with so many nodes, in the order of time. It depends on nothing
// else: faults are those of the table that this machine can do.
func draw(seed uint64, length time.Duration, nodes int, faults []fault) []event {
	var all []event
	for l := range lanes {
		// A lane's draws do not depend on how long another one is.
		all = append(all, drawLane(rand.New(rand.NewPCG(seed, uint64(l))), l, length, nodes, faults)...)
	}
	slices.SortStableFunc(all, func(a, b event) int { return cmp.Compare(a.At, b.At) })
	return all
}

// drawLane draws faults as cards of a pack: each comes once before any comes again.
func drawLane(rng *rand.Rand, l lane, length time.Duration, nodes int, faults []fault) (all []event) {
	between := func(span [2]time.Duration) time.Duration {
		return span[0] + time.Duration(rng.Int64N(int64(max(span[1]-span[0], 1))))
	}
	var pack []fault
	at := between(pauses[l]) / 2
	for {
		if len(pack) == 0 {
			for _, f := range faults {
				if f.lane == l {
					pack = append(pack, f)
				}
			}
			rng.Shuffle(len(pack), func(i, j int) { pack[i], pack[j] = pack[j], pack[i] })
		}
		if len(pack) == 0 {
			return nil
		}
		f := pack[0]
		pack = pack[1:]
		e := event{At: at, Fault: f.name, Node: -1, Lasts: between(f.lasts), Seed: rng.Uint64()}
		if f.victims != nil {
			can := f.victims(nodes)
			e.Node = can[rng.IntN(len(can))]
		}
		takes := e.Lasts
		if f.takes != nil {
			takes, e.Lasts = f.takes(nodes), 0
		}
		if at += takes; at > length {
			return all
		}
		if f.late == 0 || e.At < time.Duration(float64(length)*f.late) {
			all = append(all, e)
		}
		at += between(pauses[l])
	}
}
