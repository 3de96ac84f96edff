package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
)

// report is all that a run has found.
type report struct {
	Date    time.Time `json:"date"` // when the last group began
	Scale   scale     `json:"scale"`
	Machine machine   `json:"machine"`
	Groups  []outcome `json:"groups"`
}

func newReport(ctx context.Context, s scale, dir string) *report {
	return &report{Date: time.Now().UTC().Truncate(time.Second), Scale: s, Machine: machineOf(ctx, dir)}
}

// keep takes over the groups of an earlier report, if that is of the same scale and machine.
func (r *report) keep(earlier *report) error {
	if earlier.Scale != r.Scale || earlier.Machine.String() != r.Machine.String() {
		return fmt.Errorf("there are results of another scale or machine (%s: %s), and this is %s: %s", earlier.Scale, earlier.Machine, r.Scale, r.Machine)
	}
	r.Groups = earlier.Groups
	return nil
}

// put adds what came of a group, in the place of what had come of it before. Groups are in the order in which they are run.
func (r *report) put(o outcome) {
	r.Date = o.Begun
	r.Groups = append(slices.DeleteFunc(r.Groups, func(had outcome) bool { return had.Name == o.Name }), o)
	slices.SortStableFunc(r.Groups, func(a, b outcome) int { return slices.Index(names(), a.Name) - slices.Index(names(), b.Name) })
}

// commit names the sources that this program was started in.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(out))
	if changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no").Output(); err != nil || len(changed) > 0 {
		name += "+"
	}
	return name
}

// err says how a group failed.
func (o outcome) err() error {
	if o.Error == "" {
		return nil
	}
	return fmt.Errorf("%s: %s", o.Name, o.Error)
}

// save writes a file.
func (r *report) save(file string, write func(io.Writer) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// told is a figure with what follows from its values.
type told struct {
	figures.Figure
	Median float64            `json:"median"`
	Least  float64            `json:"least"`
	Most   float64            `json:"most"`
	Ratios map[string]float64 `json:"ratios,omitempty"` // to the systems beside it
}

// told returns the figures, those of one measurement one after the other.
func (o outcome) told() (all []told) {
	set := figures.Set{All: o.Figures}
	first := make(map[figures.Measurement]int)
	for i, f := range o.Figures {
		if _, ok := first[f.Measurement]; !ok {
			first[f.Measurement] = i
		}
		least, most := f.Spread()
		all = append(all, told{f, f.Median(), least, most, set.Ratios(f)})
	}
	slices.SortStableFunc(all, func(a, b told) int { return first[a.Measurement] - first[b.Measurement] })
	return all
}

// MarshalJSON adds what follows from the values.
func (o outcome) MarshalJSON() ([]byte, error) {
	type plain outcome // has no methods
	return json.Marshal(struct {
		plain
		Figures []told `json:"figures"`
	}{plain(o), o.told()})
}

// json writes all of it as JSON, a line for each group and figure, so that what differs between two runs is seen.
func (r *report) json(w io.Writer) error {
	p, err := json.Marshal(r)
	if err != nil {
		return err
	}
	const begin = `{"name":` // in a string its quotes would be escaped
	_, err = w.Write(append(bytes.ReplaceAll(p, []byte(begin), []byte("\n"+begin)), '\n'))
	return err
}

// readReport reads what json has written.
func readReport(file string) (*report, error) {
	p, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := new(report)
	if err := json.Unmarshal(p, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// beside tells of a figure's ratios in words.
func (t told) beside() string {
	var words []string
	for _, system := range t.Beside {
		if r, ok := t.Ratios[system]; ok {
			words = append(words, fmt.Sprintf("%s × %s", number(r), system))
		}
	}
	return strings.Join(words, ", ")
}

// ours are the figures of Granary, in whatever way it is run: systems whose names begin so.
func (o outcome) ours() []told {
	return slices.DeleteFunc(o.told(), func(t told) bool { return t.Missing != "" || !strings.HasPrefix(t.System, granary) })
}
