package main

import "github.com/granary-oci/granary/simtest/figures"

// tell adds the figures. What is mounted is compared with the snapshotter, and with a pull of all.
func (r *results) tell(told *figures.Set) {
	const pull, snapshotter = "containerd pulls, gzip", "stargz-snapshotter, estargz"
	for _, x := range r.all {
		until, moved := figures.Measurement{Name: "first output of " + x.command, Unit: "s"}, figures.Measurement{Name: "moved until then, " + x.command, Unit: "MB"}
		system := "granary " + x.row + ", " + x.format
		switch x.row {
		case "pull":
			system = pull
		case "snapshotter":
			system = "stargz-snapshotter, " + x.format
		}
		for _, o := range x.runs {
			told.Add(until, system, o.took.Seconds())
			told.Add(moved, system, float64(o.bytes)/1e6)
		}
		if x.row == "pull" || x.row == "snapshotter" {
			continue
		}
		told.Compare(until, system, snapshotter, pull)
		told.Compare(moved, system, snapshotter, pull)
	}
}
