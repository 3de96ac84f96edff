package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/tracker"
)

// usual are the results of the small rows of scenarios, with seed 1.
var usual = make(map[int][]result)

// simulated returns what the small rows of a scenario give, with seed 1.
func simulated(t *testing.T, number int) []result {
	t.Helper()
	if usual[number] == nil {
		usual[number] = simulate(t, number, 1)
	}
	return usual[number]
}

// simulate runs the small rows of a scenario.
func simulate(t *testing.T, number int, seed uint64) (all []result) {
	t.Helper()
	for r := range simulateAll(scenarios[number-1].rows(false), seed) {
		r.Wall = 0
		if r.Failed > 0 {
			t.Errorf("%s: %d nodes have not read all", r.Name, r.Failed)
		}
		all = append(all, r)
	}
	return all
}

func TestTheSameSeedGivesTheSameResult(t *testing.T) {
	for _, number := range []int{4, 5, 6} { // all kinds of chance
		first, again, other := simulated(t, number), simulate(t, number, 1), simulate(t, number, 2)
		if !reflect.DeepEqual(first, again) {
			t.Errorf("scenario %d: with the same seed the results differ:\n%+v\n%+v", number, first, again)
		}
		if reflect.DeepEqual(first, other) {
			t.Errorf("scenario %d: the seed changes nothing", number)
		}
	}
}

// An image leaves the registry once for each zone, however many nodes pull it.
func TestARegistrySendsAnImageOnce(t *testing.T) {
	for _, number := range []int{1, 2, 3, 4} {
		for _, r := range simulated(t, number) {
			if r.Registry > 1.05 {
				t.Errorf("%s: %.3f copies have left the registry", r.Name, r.Registry)
			}
		}
	}
}

// Whatever goes wrong costs the registry little, and each node gets all.
func TestFaultsCostTheRegistryLittle(t *testing.T) {
	for _, number := range []int{5, 6} {
		for _, r := range simulated(t, number) {
			if r.Registry > 1.5 {
				t.Errorf("%s: %.3f copies have left the registry", r.Name, r.Registry)
			}
		}
	}
}

// Those who would get a stripe first are gone, and nobody knows yet: all who want it find the next one before they turn to the
// registry.
func TestOwnersThatCrashTogetherCostTheRegistryLittle(t *testing.T) {
	for crashed := 1; crashed <= 3; crashed++ {
		s := base(200, gigabit, gigabit, two(100*megabyte)...)
		s.Seed = 1
		c := newCluster(s)
		for _, stripe := range []int{0, 5, 9} {
			for _, p := range c.nodes[0].roster.owners("z0", tracker.StripeKey(c.blobs[0].digest, stripe))[:crashed] {
				c.byID[p.ID].dead = true
			}
		}
		all(c)
		for _, n := range c.nodes {
			if n.dead {
				c.left-- // it pulls nothing
			}
		}
		if r := c.run("crashed owners"); r.Failed > 0 || r.Registry > 1.05 {
			t.Errorf("%d owners of three stripes have crashed: %.3f copies have left the registry, %d nodes have not read all", crashed, r.Registry, r.Failed)
		}
	}
}

// What a crowd takes hangs on the links, and little on how large it is; and no node is told more by others because there
// are more of them.
func TestACrowdTakesNoLongerForBeingLarge(t *testing.T) {
	for _, r := range simulated(t, 1) {
		if r.ratio() > 1.7 {
			t.Errorf("%s: 99 %% took %.2f times what the links take", r.Name, r.ratio())
		}
	}
	messages := make(map[string]float64) // of the smallest crowd
	for _, r := range simulated(t, 2) {
		_, kind, _ := strings.Cut(r.Name, "nodes, ")
		if r.ratio() > 2.5 {
			t.Errorf("%s: 99 %% took %.2f times what the links take", r.Name, r.ratio())
		}
		if messages[kind] == 0 {
			messages[kind] = r.Control
		}
		if r.Control > 2*messages[kind] {
			t.Errorf("%s: %.1f messages a stripe, and of the smallest crowd %.1f", r.Name, r.Control, messages[kind])
		}
	}
}

// Of a new version most does not move.
func TestARollingUpdateMovesWhatIsNew(t *testing.T) {
	for _, r := range simulated(t, 3) {
		if r.quantile(0.5) > r.Bound/2 {
			t.Errorf("%s: the median took %v, of %v for all of it", r.Name, r.quantile(0.5), r.Bound)
		}
	}
}

// What the zones get from the registry crosses the links to them once, and nothing crosses those between them while all pull at once.
func TestThinLinksAreCrossedOnce(t *testing.T) {
	for _, r := range simulated(t, 4) {
		for link, copies := range r.Crossed {
			if copies > 1.05 {
				t.Errorf("%s: %s: %.2f copies", r.Name, link, copies)
			}
		}
	}
}

func TestTheProgramTellsItsSeedAndPlots(t *testing.T) {
	var text, out bytes.Buffer
	dir := t.TempDir()
	o := options{seed: 42, only: map[int]bool{2: true, 7: true}, svg: dir, told: new(figures.Set)}
	if err := o.run(&text); err != nil || !strings.Contains(text.String(), "seed 42") {
		t.Errorf("%v:\n%s", err, text.String())
	}
	for _, name := range []string{"2-times", "2-bound", "2-registry", "2-uplink", "2-in-vain", "2-messages", "7-times", "7-costs"} {
		if err := wellFormed(filepath.Join(dir, "scenario"+name+".svg")); err != nil {
			t.Error(err)
		}
	}
	o.only = map[int]bool{7: true}
	o.json, o.svg = true, ""
	if err := o.run(&out); err != nil {
		t.Fatal(err)
	}
	var told []report
	if err := json.Unmarshal(out.Bytes(), &told); err != nil || len(told) != 1 || told[0].Seed != 42 || len(told[0].Rows[0].Times) != 100 {
		t.Errorf("%v: %+v", err, told)
	}
}

// wellFormed reads a file of XML to its end.
func wellFormed(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for d := xml.NewDecoder(f); ; {
		switch _, err := d.Token(); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

func TestLinksAreShared(t *testing.T) {
	n := network{loop: new(loop), latency: time.Millisecond}
	machine := func(rate float64) *host { return &host{net: &n, up: link{rate: rate}, down: link{rate: rate}} }
	from, to := machine(100e6), []*host{machine(100e6), machine(100e6), machine(10e6)}
	var ended [3]time.Duration
	for i, h := range to {
		f := n.flow(from, h)
		for range 10 {
			f.push(1e6, func() { ended[i] = n.now })
		}
	}
	for n.step() {
	}
	// 10 MB each: the slow one takes a second, and leaves the others what it cannot take.
	for i, want := range []time.Duration{220 * time.Millisecond, 220 * time.Millisecond, time.Second} {
		if off := ended[i] - want; off < -want/5 || off > want/5 {
			t.Errorf("flow %d ended after %v, want about %v", i, ended[i], want)
		}
	}
}
