package main

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// gauge is something of a node that must not grow. What it may grow by is for what differs from moment to moment: connections that
// are kept a while, lanes to members that have come back, caches of memory that had not been full yet.
type gauge struct {
	name  string
	may   float64
	scale float64
	unit  string
	read  func(netns.Metrics) float64
}

var gauges = []gauge{
	{"goroutines", 60, 1, "", func(m netns.Metrics) float64 { return m.Sum("go_goroutines", "") }},
	{"file descriptors", 40, 1, "", func(m netns.Metrics) float64 { return m.Sum("process_open_fds", "") }},
	{"heap in use", 48 << 20, 1 << 20, " MiB", func(m netns.Metrics) float64 { return m.Sum("go_memstats_heap_inuse_bytes", "") }},
	{"resident memory", 96 << 20, 1 << 20, " MiB", func(m netns.Metrics) float64 { return m.Sum("process_resident_memory_bytes", "") }},
}

// measure reads the gauges of each node, after a collection of garbage.
func (l *lab) measure(ctx context.Context) (all [][]float64, err error) {
	for _, n := range l.nodes {
		if _, err := netns.Read(ctx, n.client, n.admin()+"/debug/pprof/heap?gc=1"); err != nil {
			return nil, err
		}
		text, err := netns.Read(ctx, n.client, n.admin()+"/metrics")
		if err != nil {
			return nil, err
		}
		var row []float64
		for _, g := range gauges {
			row = append(row, g.read(netns.Metrics(text)))
		}
		all = append(all, row)
	}
	return all, nil
}

// grown fails the run if a gauge of a node is higher than that of any was before the faults, by more than it may.
func (l *lab) grown(before, after [][]float64) {
	for g, gauge := range gauges {
		base, top := 0.0, 0.0
		for i := range before {
			base, top = max(base, before[i][g]), max(top, after[i][g])
		}
		text := fmt.Sprintf("%s: at most %.0f%s of a node, %.0f before", gauge.name, top/gauge.scale, gauge.unit, base/gauge.scale)
		if l.log("%s", text); top > base+gauge.may {
			l.fail(nil, 0, 0, "%s; %.0f more may be", text, gauge.may/gauge.scale)
		}
	}
}

// onDisk returns what a file takes of the disk.
func onDisk(d fs.DirEntry) int64 {
	info, err := d.Info()
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// indexRoom is how much a node takes on disk beyond its chunks: the index, the catalog, and what it keeps of itself.
const indexRoom = 32 << 20

// disks fails the run if a node takes more of its disk than it may.
func (l *lab) disks() {
	for _, n := range l.nodes {
		var sum int64
		_ = filepath.WalkDir(n.dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				sum += onDisk(d)
			}
			return nil
		})
		l.log("disk: node %d takes %d MiB, of %d", n.index+1, sum>>20, n.room>>20)
		if sum > n.room+indexRoom {
			l.fail(nil, 0, 0, "node %d takes %d bytes of its disk, and may have %d of chunks", n.index+1, sum, n.room)
		}
	}
}

// watchBlame looks all the time whom nodes hold to be at fault, and fails the run if it is not one that was corrupt.
func (l *lab) watchBlame(ctx context.Context) {
	for netns.Pause(ctx, 2*time.Second) == nil {
		for _, n := range l.nodes {
			s, err := n.status(ctx)
			if err != nil {
				continue // it is away
			}
			for _, m := range s.Cluster.Members {
				if m.Strikes > 0 {
					l.blame(n, m.ID, m.Fault)
				}
			}
		}
	}
}

func (l *lab) blame(n *node, id, why string) {
	key := fmt.Sprint(n.index, id)
	l.mu.Lock()
	told, culprit := l.blamed[key], l.culprits[id]
	wait := culprit == "" && l.nameless > 0 // it is looked at again
	l.blamed[key] = told || !wait
	l.mu.Unlock()
	now := l.history.now()
	switch {
	case told || wait:
	case culprit == "":
		l.fail(n, now, now, "node %d holds %s to be at fault, which was not corrupt: %s", n.index+1, l.nameOf(id), why)
	default:
		l.count1("quarantines")
		l.log("        node %d holds %s to be at fault (%s): %s", n.index+1, l.nameOf(id), culprit, why[:min(len(why), 200)])
	}
}

func (l *lab) nameOf(id string) string {
	for _, n := range l.nodes {
		if n.id == id {
			return fmt.Sprintf("node %d", n.index+1)
		}
	}
	return id
}

// hedged is what leaves the registry again on a busy machine, whose owners are not always in time.
const hedged = 0.25

// bound returns how many bytes of blobs may have left the registry, and how many have. Of each blob that is one copy, what is
// hedged, and what the faults may cost that were felt between its first request and when two nodes had all of it; what ruins
// files costs later, too, as long as it is asked for. With --unproven-ranges=upstream parts of a blob are not taken from members before it has matched: what of them was
// asked of nodes that did not have all of it may come on top.
func (l *lab) bound() (may, sent, once int64) {
	complete := l.history.complete(2)
	l.registry.mu.Lock()
	defer l.registry.mu.Unlock()
	for d, c := range l.registry.counted {
		until, ok := complete[d]
		if !ok {
			until = forever - announced
		}
		copies := 1 + hedged
		for _, e := range l.history.overlapping(c.first, until+announced) {
			if f := named(e.Fault); f.copies != nil {
				copies += f.copies(l, e)
			}
		}
		for _, e := range l.history.overlapping(until+announced+1, c.last) {
			if f := named(e.Fault); f.ruins {
				copies += f.copies(l, e)
			}
		}
		if may += int64(copies * float64(c.size)); l.unproven == "upstream" {
			may += l.history.partsOf(d)
		}
		sent, once = sent+c.sent, once+c.size
	}
	return may, sent, once
}

// bounded fails the run if more left the registry than may.
func (l *lab) bounded() {
	may, sent, once := l.bound()
	l.log("registry: %d MB of blobs of %d MB left it, %.2f copies; the bound is %.2f", sent/1e6, once/1e6, float64(sent)/float64(once), float64(may)/float64(once))
	if sent > may {
		l.fail(nil, 0, 0, "%d bytes of blobs left the registry, and %d may", sent, may)
	}
}
