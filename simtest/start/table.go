package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// result is all runs of a row with a format and a command.
type result struct {
	row, format, command string
	runs                 []outcome
}

// results are in the order in which they were first measured.
type results struct{ all []*result }

func (r *results) add(row, format, command string, o outcome) *result {
	i := slices.IndexFunc(r.all, func(x *result) bool { return x.row == row && x.format == format && x.command == command })
	if i < 0 {
		i = len(r.all)
		r.all = append(r.all, &result{row: row, format: format, command: command})
	}
	r.all[i].runs = append(r.all[i].runs, o)
	return r.all[i]
}

// print prints a table of medians.
func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-22s %-14s %-9s %8s %15s %9s %9s %9s %9s %6s\n", "row", "image", "command", "seconds", "least to most", "mounted", "MB", "MB peers", "requests", "CPU s")
	for _, x := range r.all {
		took := x.each(func(o outcome) float64 { return o.took.Seconds() })
		fmt.Fprintf(w, "%-22s %-14s %-9s %8.2f %7.2f–%-7.2f %9.2f %9.2f %9.2f %9.0f %6.2f\n", x.row, x.format, x.command, middle(took), took[0], took[len(took)-1],
			middle(x.each(func(o outcome) float64 { return o.mounted.Seconds() })),
			middle(x.each(func(o outcome) float64 { return float64(o.bytes) / 1e6 })),
			middle(x.each(func(o outcome) float64 { return float64(o.peers) / 1e6 })),
			middle(x.each(func(o outcome) float64 { return float64(o.requests) })),
			middle(x.each(func(o outcome) float64 { return o.cpu })))
	}
}

// each returns a value of all runs, in order.
func (x *result) each(of func(outcome) float64) (all []float64) {
	for _, o := range x.runs {
		all = append(all, of(o))
	}
	slices.Sort(all)
	return all
}

func middle(sorted []float64) float64 { return sorted[len(sorted)/2] }

// String is one run, as it is told while the others are under way.
func (o outcome) String() string {
	s := fmt.Sprintf("%v, mounted after %v, %.2f MB", o.took.Round(time.Millisecond), o.mounted.Round(time.Millisecond), float64(o.bytes)/1e6)
	if o.peers > 0 {
		s += fmt.Sprintf(", %.2f MB from peers", float64(o.peers)/1e6)
	}
	if o.requests > 0 {
		s += fmt.Sprintf(", %d requests", o.requests)
	}
	if o.cpu > 0 {
		s += fmt.Sprintf(", %.2f s of CPU time", o.cpu)
	}
	if _, read, ok := strings.Cut(o.note, ": unmounted after "); ok {
		s += "; " + read
	}
	return s
}
