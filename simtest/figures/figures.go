// Package figures is what measurements are told in: a value for each round, of one system in one measurement, beside other
// systems that took turns with it. Commands of simtest write theirs to a file (-figures), which simtest/bench collects.
// What is measured, and how figures are shown, it leaves to those.
package figures

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
)

// Measurement is what systems are measured by.
type Measurement struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
}

// Figure is what one system showed in one measurement.
type Figure struct {
	Measurement
	System string    `json:"system"`
	Values []float64 `json:"values,omitempty"` // one for each round
	// Beside are the systems that this one is compared with.
	Beside []string `json:"beside,omitempty"`
	// Missing says why there are no values.
	Missing string `json:"missing,omitempty"`
}

// Median returns the median of its values.
func (f Figure) Median() float64 { return Median(f.Values) }

// Spread returns the least and the greatest value, and 0 of none.
func (f Figure) Spread() (least, most float64) {
	if len(f.Values) == 0 {
		return 0, 0
	}
	return slices.Min(f.Values), slices.Max(f.Values)
}

// Ratio returns how many times the other's value this one's is. Of systems that took as many rounds it is the median of the rounds'
// ratios, for what disturbs a round disturbs both; else it is that of the medians. It is false where there is no such ratio.
func (f Figure) Ratio(other Figure) (float64, bool) {
	if len(f.Values) == 0 || len(other.Values) == 0 || slices.Contains(other.Values, 0) {
		return 0, false
	}
	if len(f.Values) != len(other.Values) {
		return f.Median() / other.Median(), true
	}
	ratios := make([]float64, len(f.Values))
	for i, v := range f.Values {
		ratios[i] = v / other.Values[i]
	}
	return Median(ratios), true
}

// Median returns the value in the middle, the mean of the two of an even number, and 0 of none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// Set is the figures of a run, in the order in which they first came.
type Set struct {
	All  []Figure
	file string
}

// Flag defines the flag that names the file for a command's figures.
func Flag(f *flag.FlagSet) *Set {
	var s Set
	f.StringVar(&s.file, "figures", "", "`file` that the figures are written to, as JSON")
	return &s
}

// Add adds a value of a system, that of a further round.
func (s *Set) Add(m Measurement, system string, value float64) {
	f := s.of(m, system)
	f.Values = append(f.Values, value)
}

// Compare says which systems a system is to be seen beside.
func (s *Set) Compare(m Measurement, system string, others ...string) {
	s.of(m, system).Beside = others
}

// Miss says why a system was not measured.
func (s *Set) Miss(m Measurement, system, why string) { s.of(m, system).Missing = why }

func (s *Set) of(m Measurement, system string) *Figure {
	i := slices.IndexFunc(s.All, func(f Figure) bool { return f.Measurement == m && f.System == system })
	if i < 0 {
		i = len(s.All)
		s.All = append(s.All, Figure{Measurement: m, System: system})
	}
	return &s.All[i]
}

// Ratios returns how many times the values of the systems that it is beside a figure is, by their names.
func (s *Set) Ratios(f Figure) map[string]float64 {
	ratios := make(map[string]float64)
	for _, other := range s.All {
		if other.Measurement != f.Measurement || !slices.Contains(f.Beside, other.System) {
			continue
		}
		if r, ok := f.Ratio(other); ok {
			ratios[other.System] = r
		}
	}
	return ratios
}

// Write writes the figures to the file that the flag names, if it names one.
func (s *Set) Write() error {
	if s.file == "" {
		return nil
	}
	p, err := json.MarshalIndent(s.All, "", "\t")
	if err != nil {
		return fmt.Errorf("figures: %w", err)
	}
	return os.WriteFile(s.file, append(p, '\n'), 0o644)
}

// Read reads the figures that a command has written.
func Read(file string) ([]Figure, error) {
	p, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []Figure
	if err := json.Unmarshal(p, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return all, nil
}
