package main

import (
	"fmt"

	"github.com/granary-oci/granary/simtest/figures"
)

// tell adds the figures of a row that went well. Whoever is compared with no node at all is beside the clients that
// ask the registry directly.
func (r *row) tell(told *figures.Set) {
	if r.err != nil || len(r.outcomes) == 0 {
		return
	}
	add := func(what, unit string, value float64) {
		m := figures.Measurement{Name: fmt.Sprintf("%d nodes, %s: %s", r.n, r.image.Name, what), Unit: unit}
		told.Add(m, r.system, value)
		if r.system == "granary" {
			told.Compare(m, r.system, "direct")
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
