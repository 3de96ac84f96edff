package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
)

const (
	validNodes = 8
	// headers are what Ethernet, IP and TCP take of a link.
	headers = 0.045
	// mayDiffer is by how much of the real time the simulated one may be off.
	mayDiffer = 0.15
	// bytesMayDiffer is by how many copies of the image what left the registry may be off: requests have headers, which the
	// simulator knows nothing of.
	bytesMayDiffer = 0.05
	// saturated is the share of the machine's CPUs from which on they are a limit, of which the simulator knows nothing.
	saturated = 0.9
)

// validImage is an image of simtest/cluster, so small that it takes seconds over thin links; validMeasured is what its figures are called, and
// validLayers are its layers.
const (
	validImage    = "small0"
	validMeasured = "8 nodes, 48 MB: "
)

var validLayers = []int64{16e6, 16e6, 8e6, 8e6}

// pair is the rates, in Mbit/s, of the registry's link and of each node's, each way.
type pair struct{ registry, node int }

func (p pair) String() string {
	return fmt.Sprintf("%d nodes, registry %d Mbit/s, nodes %d Mbit/s", validNodes, p.registry, p.node)
}

// validPairs are what is validated: once the registry's link is the limit, and once those of the nodes are, with rates that leave two CPUs
// time. Over links of less than 60 Mbit/s a chunk for each of seven who ask takes longer than a second, and real nodes' words that they are at
// work queue behind it; those of simulated ones do not.
var validPairs = []pair{{50, 200}, {200, 80}}

// seen is what a crowd of nodes that pull at once looks like.
type seen struct {
	median float64 // time of a node, in seconds
	copies float64 // of the image that left the registry
	busy   float64 // share of the machine's CPUs; 0 of a simulated crowd
}

// validate compares what real processes do with what the simulator says. It fails if they differ, and also if the machine was too busy to tell.
func validate(w io.Writer, seed uint64) error {
	fmt.Fprintf(w, "%-54s %9s %9s %10s %7s %7s\n", "", "real", "simulated", "difference", "copies", "busy")
	var errs []error
	for _, p := range validPairs {
		real, err := p.real(3, "go", "run", "github.com/granary-oci/granary/simtest/cluster")
		if err != nil {
			return err
		}
		simulated := p.simulate(seed)
		fmt.Fprintf(w, "%-54s %7.2f s %7.2f s %8.1f %% %7.3f %5.0f %%\n", p, real.median, simulated.median, 100*simulated.off(real), real.copies, 100*real.busy)
		if err := simulated.compare(real); err != nil {
			errs = append(errs, fmt.Errorf("%v: %w", p, err))
		} else if real.busy > saturated {
			errs = append(errs, fmt.Errorf("%v: the machine's CPUs were busy: times are not compared", p))
		}
	}
	return errors.Join(errs...)
}

// off is by which share of the real time the simulated one is longer.
func (s seen) off(real seen) float64 { return s.median/real.median - 1 }

// compare returns in what the simulator is wrong. Times of a machine whose CPUs were the limit tell nothing of it, but what leaves the
// registry is the same.
func (s seen) compare(real seen) error {
	var errs []error
	if more := real.copies - s.copies; math.Abs(more) > bytesMayDiffer {
		errs = append(errs, fmt.Errorf("%.3f copies have left the registry, and %.3f that is simulated", real.copies, s.copies))
	}
	if off := s.off(real); real.busy <= saturated && math.Abs(off) > mayDiffer {
		errs = append(errs, fmt.Errorf("the simulated time is off by %.0f %%", 100*off))
	}
	return errors.Join(errs...)
}

// simulate has simulated nodes pull.
func (p pair) simulate(seed uint64) seen {
	rate := func(mbit int) float64 { return (1 - headers) * float64(mbit) * 1e6 / 8 }
	s := base(validNodes, rate(p.node), rate(p.registry), validLayers...)
	r := row{"", s, func(c *cluster) { c.start(c.nodes, 10*time.Millisecond) }}.run(seed)
	return seen{median: r.quantile(0.5).Seconds(), copies: r.Registry}
}

// real has processes pull so many times, each on a machine of its own, and returns medians. program is simtest/cluster.
func (p pair) real(runs int, program ...string) (s seen, err error) {
	dir, err := os.MkdirTemp("", "granary-sim-")
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "figures.json")
	args := append(program, "-n", strconv.Itoa(validNodes), "-image", validImage, "-rows", "granary", "-runs", strconv.Itoa(runs),
		"-registry-rate", strconv.Itoa(p.registry), "-node-rate", strconv.Itoa(p.node),
		"-max-egress", "0", "-max-requests=false", "-work", dir, "-figures", file) // what is too much this program says
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return s, fmt.Errorf("simtest/cluster: %w\n%s", err, out)
	}
	all, err := figures.Read(file)
	if err != nil {
		return s, err
	}
	for _, f := range all {
		switch f.Name {
		case validMeasured + "median client":
			s.median = f.Median()
		case validMeasured + "bytes that left the registry":
			s.copies = f.Median()
		case validMeasured + "CPUs of the machine":
			s.busy = f.Median() / 100
		}
	}
	if s.median == 0 || s.copies == 0 || s.busy == 0 {
		return s, fmt.Errorf("simtest/cluster: figures are missing in %+v", all)
	}
	return s, nil
}
