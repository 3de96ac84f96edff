package main

import (
	"fmt"

	"github.com/granary-oci/granary/simtest/figures"
)

// tell adds the figures of a scenario.
func (r report) tell(told *figures.Set) {
	for _, row := range r.Rows {
		add := func(what, unit string, value float64) {
			told.Add(figures.Measurement{Name: fmt.Sprintf("%d. %s: %s", r.Scenario, row.Name, what), Unit: unit}, "granary, simulated", value)
		}
		add("99 % of the nodes", "s", row.quantile(0.99).Seconds())
		add("99 % of the nodes beside the bound", "×", row.ratio())
		add("bytes that left the registry", "copies", row.Registry)
	}
}
