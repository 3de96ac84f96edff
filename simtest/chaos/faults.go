package main

import (
	"context"
	"strings"
	"time"
)

// fault is something that goes wrong.
type fault struct {
	name    string
	lane    lane
	lasts   [2]time.Duration              // from and to
	takes   func(nodes int) time.Duration // in place of lasts: about how long apply takes
	late    float64                       // it begins in this first part of a run; 0 is any time
	victims func(nodes int) []int         // of whom one is drawn; nil for none
	lacks   func(l *lab) string           // why it is left out on this machine, if so
	copies  func(l *lab, e event) float64 // how often more a blob may leave the registry that is being fetched then; nil is never
	mute    bool                          // the registry gives no answer, and is left alone for a while after it
	ruins   bool                          // copies are also of blobs that had been fetched
	apply   func(*lab, context.Context, event) (undo func(context.Context) error, err error)
}

// What nodes are for. The others are like each other.
const (
	steady   = 0 // its process ends only to be upgraded, in the first half: what grows, grows here
	wary     = 1 // hashes chunks each time, so its files may change while it runs
	narrow   = 2 // has little room, and evicts
	minNodes = 4 // the last one's clock can be set
)

func anyNode(nodes int) []int   { return upTo(0, nodes) }
func mortal(nodes int) []int    { return upTo(steady+1, nodes) }
func theWary(int) []int         { return []int{wary} }
func clocked(nodes int) []int   { return []int{nodes - 1} }
func once(*lab, event) float64  { return 1 }
func twice(*lab, event) float64 { return 2 }

// share is what a node that fails costs: what it owns of a blob is fetched by the next owner, and by itself again.
func share(l *lab, _ event) float64 { return 2 / float64(l.count) }

// lies is what a corrupt member costs: what it owns others fetch, and if the whole blob alone shows that it has lied, each node all of it.
func lies(l *lab, e event) float64 {
	if l.behaviour(e).Late {
		return float64(l.count)
	}
	return share(l, e)
}

func upTo(from, to int) (all []int) {
	for i := from; i < to; i++ {
		all = append(all, i)
	}
	return all
}

// seconds is a span of time.
func seconds(from, to float64) [2]time.Duration {
	return [2]time.Duration{time.Duration(from * float64(time.Second)), time.Duration(to * float64(time.Second))}
}

// faults are all there are. copies says what a fault may cost the registry, of a blob that it sends then:
//
//   - a connection that breaks takes with it what was on its way: a copy at the most, though a thing is sent on from where it broke off;
//   - of a node that is gone, deaf or slow others fetch what it owns, and it fetches again what it had not committed: its share, twice;
//   - in an upgrade each node is gone once;
//   - files that are ruined are fetched again, from other members as long as these can be asked: the share of what it owns, twice;
//   - a node whose disk is full keeps nothing of what it owns, and may be asked for that by each other member: that is a copy; and it may need
//     one for its own clients;
//   - each half of a cluster that is cut in two, or whose members do not understand each other for a moment, fetches a copy;
//   - what a corrupt member owns others fetch. If only the whole blob shows that it has lied, each node fetches all of it alone.
var faults = []fault{
	{name: "registry answers 500", lane: ofRegistry, lasts: seconds(3, 9), apply: registryIs(answers500)},
	{name: "registry answers 503", lane: ofRegistry, mute: true, lasts: seconds(3, 9), apply: registryIs(answers503)},
	{name: "registry answers 429", lane: ofRegistry, lasts: seconds(3, 9), apply: registryIs(answers429)},
	{name: "registry is slow", lane: ofRegistry, lasts: seconds(4, 10), apply: registryIs(slow)},
	{name: "registry cuts bodies", lane: ofRegistry, lasts: seconds(4, 10), copies: once, apply: registryIs(cuts)},
	{name: "registry is dead", lane: ofRegistry, mute: true, lasts: seconds(4, 12), copies: once, apply: registryIs(dead)},

	{name: "kill -9", lane: ofMachines, lasts: seconds(1, 6), victims: mortal, copies: share, apply: (*lab).kill},
	{name: "SIGSTOP", lane: ofMachines, lasts: seconds(2, 8), victims: anyNode, copies: share, apply: (*lab).freeze},
	{name: "restart", lane: ofMachines, lasts: seconds(0, 2), victims: mortal, copies: share, apply: (*lab).restart},
	{name: "files corrupted while stopped", lane: ofMachines, lasts: seconds(0, 1), victims: mortal, copies: share, ruins: true, apply: (*lab).corruptStopped},
	{name: "files corrupted while running", lane: ofMachines, lasts: seconds(3, 6), victims: theWary, copies: share, ruins: true, apply: (*lab).corruptRunning},
	{name: "full disk", lane: ofMachines, lasts: seconds(4, 10), victims: anyNode, lacks: noRoot, copies: twice, apply: (*lab).fillDisk},
	{name: "clock jump", lane: ofMachines, lasts: seconds(3, 8), victims: clocked, apply: (*lab).jump},

	{name: "partition", lane: ofNetwork, lasts: seconds(5, 15), lacks: noRoot, copies: once, apply: (*lab).partition},
	{name: "slow link", lane: ofNetwork, lasts: seconds(5, 15), lacks: noRoot, victims: anyNode, copies: share, apply: (*lab).slowLink},
	{name: "corrupt member", lane: ofNetwork, lasts: seconds(8, 16), copies: lies, apply: (*lab).corruptMember},

	{name: "rolling upgrade", lane: ofCluster, late: 0.5, takes: func(n int) time.Duration { return time.Duration(n) * 4 * time.Second }, copies: twice, apply: (*lab).upgrade},
	{name: "secret rotation", lane: ofCluster, takes: func(int) time.Duration { return 3 * secretStep }, copies: once, apply: (*lab).rotate},
}

func noRoot(l *lab) string {
	if l.bridge == nil {
		return "it takes root"
	}
	return ""
}

// possible returns the faults that a lab can do, and why it cannot do the others.
func (l *lab) possible() (can []fault, not []string) {
	for _, f := range faults {
		why := ""
		if f.lacks != nil {
			why = f.lacks(l)
		}
		switch {
		case !strings.Contains(f.name, l.only):
		case why == "":
			can = append(can, f)
		default:
			not = append(not, f.name+": "+why)
		}
	}
	return can, not
}

func named(name string) fault {
	for _, f := range faults {
		if f.name == name {
			return f
		}
	}
	return fault{}
}
