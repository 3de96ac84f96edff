package main

import (
	"path/filepath"
	"testing"

	"github.com/granary-oci/granary/simtest/programs"
)

// Eight real processes, on machines with shaped links, move what the simulator says. What this asserts is bytes, for a machine that does
// other things as well makes times longer, and then they say nothing of the simulator: it tells of them, and "-validate"
// judges them, on a machine that is idle.
func TestRealNodesDoAsSimulated(t *testing.T) {
	if testing.Short() {
		t.Skip("it runs real nodes")
	}
	programs.NeedRoot(t)
	for _, name := range []string{"ip", "tc", "docker-registry"} {
		programs.OfSystem(t, name)
	}
	dir := t.TempDir()
	if err := programs.Build(dir, "cmd/granary", "simtest/cluster"); err != nil {
		t.Fatal(err)
	}
	p := validPairs[0]
	real, err := p.real(1, filepath.Join(dir, "cluster"), "-granary", filepath.Join(dir, "granary"))
	if err != nil {
		t.Fatal(err)
	}
	simulated := p.simulate(1)
	t.Logf("%v: %.2f s, simulated %.2f s (%+.1f %%), CPUs %.0f %% busy", p, real.median, simulated.median, 100*simulated.off(real), 100*real.busy)
	real.busy = 1 // times are not to be judged
	if err := simulated.compare(real); err != nil {
		t.Error(err)
	}
}

func TestWhatIsOffIsSeen(t *testing.T) {
	simulated := seen{median: 10, copies: 1}
	for _, c := range []struct {
		real seen
		ok   bool
	}{
		{seen{median: 10, copies: 1.004, busy: 0.5}, true},
		{seen{median: 11.5, copies: 1, busy: 0.5}, true},
		{seen{median: 12, copies: 1, busy: 0.5}, false},
		{seen{median: 8.6, copies: 1, busy: 0.5}, false},
		{seen{median: 20, copies: 1, busy: 0.95}, true}, // it was busy
		{seen{median: 10, copies: 2.2, busy: 0.5}, false},
		{seen{median: 20, copies: 2.2, busy: 0.95}, false},
		{seen{median: 0, copies: 1, busy: 0.5}, false},
	} {
		if err := simulated.compare(c.real); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.real, err)
		}
	}
}

// The pairs are limited by what they say: a thinner link of the registry changes the first, and one of the nodes the second.
func TestPairsAreLimitedByTheirLinks(t *testing.T) {
	for i, thinner := range []pair{{validPairs[0].registry / 2, validPairs[0].node}, {validPairs[1].registry, validPairs[1].node / 2}} {
		now, then := validPairs[i].simulate(1).median, thinner.simulate(1).median
		if then < 1.7*now {
			t.Errorf("%v takes %.2f s, and %v %.2f s", validPairs[i], now, thinner, then)
		}
	}
}
