package main

import (
	"fmt"

	"github.com/granary-oci/granary/simtest/figures"
)

// tell adds the figures of a row that went well. Rows without any node are what others are compared with.
func (r *row) tell(told *figures.Set) {
	if r.err != nil || len(r.outcomes) == 0 {
		return
	}
	add := func(what, unit string, value float64) {
		m := figures.Measurement{Name: fmt.Sprintf("%d nodes, %.0f MB: %s", r.n, float64(r.image.size())/1e6, what), Unit: unit}
		switch r.system {
		case "direct", "single":
			told.Add(m, r.system, value)
		case "granary":
			told.Add(m, r.system, value)
			told.Compare(m, r.system, "direct")
		default:
			told.Add(m, "granary, "+r.system, value)
		}
	}
	all := r.seconds()
	add("median client", "s", figures.Median(all))
	add("slowest client", "s", all[len(all)-1])
	add("slowest client beside the bound", "×", r.ratio())
	add("bytes that left the registry", "copies", r.copies())
	if r.cpu > 0 {
		add("CPU of all nodes", "s", r.cpu)
		add("largest resident memory", "MiB", float64(r.rss>>20))
	}
	add("CPUs of the machine", "% busy", 100*r.busy)
}
