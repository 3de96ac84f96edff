package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// report is a scenario's results.
type report struct {
	Seed     uint64
	Scenario int
	Title    string
	Rows     []result
}

const line = "%-50s %9s %9s %9s %7s %9s %7s %8s %8s %9s %9s  %s\n"

func (r report) header(w io.Writer) {
	fmt.Fprintf(w, "\n%d. %s\n\n", r.Scenario, r.Title)
	fmt.Fprintf(w, line, "", "p50", "p99", "p99.9", "÷ bound", "registry", "uplink", "busiest", "in vain", "messages", "most sent", "")
}

func (r result) print(w io.Writer) {
	note := ""
	if r.Failed > 0 {
		note = fmt.Sprintf("%d nodes have NOT read all. ", r.Failed)
	}
	for _, k := range slices.Sorted(maps.Keys(r.Crossed)) {
		note += fmt.Sprintf("%s: %.3f. ", k, r.Crossed[k])
	}
	fmt.Fprintf(w, line, r.Name, seconds(r.quantile(0.5)), seconds(r.quantile(0.99)), seconds(r.quantile(0.999)), fmt.Sprintf("%.2f", r.ratio()),
		fmt.Sprintf("%.3f", r.Registry), fmt.Sprintf("%.0f %%", 100*r.Uplink), fmt.Sprintf("%.2f", r.Busiest), fmt.Sprintf("%.2f %%", 100*r.Duplicate),
		fmt.Sprintf("%.1f", r.Control), fmt.Sprint(r.MostTold), note)
}

// ratio returns the time of nearly all, in bounds.
func (r result) ratio() float64 { return r.quantile(0.99).Seconds() / r.Bound.Seconds() }

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
