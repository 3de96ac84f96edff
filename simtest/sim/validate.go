package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// What is validated: eight nodes pull an image of which the links are the limit, in the registry's case and in that of
// the nodes.
const (
	validNodes = 8
	// headers are what Ethernet, IP and TCP take of a link.
	headers = 0.045
	// mayDiffer is by how much of the real time the simulated one may be off.
	mayDiffer = 0.15
)

// image190 is the image of simtest/cluster by that name: its layers.
var image190 = []int64{70e6, 60e6, 40e6, 15e6, 5e6}

// validate runs the same with real processes and in the simulator.
func validate(w io.Writer, seed uint64) error {
	fmt.Fprintf(w, "%-36s %10s %10s %10s\n", "8 nodes, 190 MB: registry, nodes", "real", "simulated", "difference")
	var errs []error
	for _, rates := range [][2]int{{50, 200}, {100, 100}} {
		real, busy, err := realTime(rates[0], rates[1])
		if err != nil {
			return err
		}
		s := base(validNodes, (1-headers)*float64(rates[1])*1e6/8, (1-headers)*float64(rates[0])*1e6/8, image190...)
		simulated := row{"", s, func(c *cluster) { c.start(c.nodes, 10*time.Millisecond) }}.run(seed).quantile(0.5).Seconds()
		off := simulated/real - 1
		fmt.Fprintf(w, "%-36s %8.2f s %8.2f s %8.1f %%\n", fmt.Sprintf("%d, %d Mbit/s", rates[0], rates[1]), real, simulated, 100*off)
		if busy {
			errs = append(errs, errors.New("the machine's CPUs were busy, which the simulator knows nothing of: nothing is compared"))
		} else if math.Abs(off) > mayDiffer {
			errs = append(errs, fmt.Errorf("at %v Mbit/s the simulator is off by %.0f %%", rates, 100*off))
		}
	}
	return errors.Join(errs...)
}

// realTime returns the median of the nodes' times, in seconds, and whether the CPUs were the limit.
func realTime(registry, node int) (median float64, busy bool, err error) {
	cmd := exec.Command("go", "run", "github.com/granary-oci/granary/simtest/cluster", "-n", strconv.Itoa(validNodes), "-rows", "granary",
		"-registry-rate", strconv.Itoa(registry), "-node-rate", strconv.Itoa(node))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return 0, false, fmt.Errorf("simtest/cluster: %w\n%s", err, out.String())
	}
	for row := range strings.Lines(out.String()) {
		if f := strings.Fields(row); len(f) > 4 && f[0] == "granary" {
			if s, err := strconv.ParseFloat(f[3], 64); err == nil {
				return s, strings.Contains(row, "CPU-bound"), nil
			}
		}
	}
	return 0, false, fmt.Errorf("simtest/cluster: no times in\n%s", out.String())
}
