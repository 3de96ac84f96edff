// Command cluster proves what a cluster of nodes is for: many nodes pull a cold
// image at once, and it crosses the registry's link once.
//
//	go run ./simtest/cluster -n 4 -n 8 [-image image190 -image blob1g] [-rows direct,granary] [-runs 3] [-work DIR] [-figures FILE]
//	go run ./simtest/cluster -n 4 -fault all
//	go run ./simtest/cluster -n 50 -rows idle
//
// It makes network namespaces on a bridge, in a namespace too: the registry's
// link carries 200 Mbit/s, that of each node 1 Gbit/s each way. A row is a
// system; all clients begin together, each on the machine of its node. Clients
// are light, fetch and hash, so that what is measured is the system. A row tells
//
//   - how long clients took, and the slowest beside the bound: the time that one
//     copy of the bytes takes on the registry's link (headers, which are 4.5 %
//     of it, are not in the bytes: see the row single, one client alone);
//   - egress: the bytes that left the registry, counted by its link, in copies;
//   - the requests that the registry got, and how many it may get: one for each
//     stripe and five per blob;
//   - CPU seconds of all nodes, from start to end, the largest resident memory,
//     and how busy the machine's CPUs were. Over 90 % the row is CPU-bound, and
//     its times tell of the machine.
//
// A row fails if a client saw an error or a wrong byte, if a node has died, or if
// a limit is passed (-max-egress, -max-time, -max-requests); then the program's
// exit status is 1. A fault (-fault) is a row in which something breaks: no
// client may notice, but that of a node which was itself killed or stopped.
//
// It takes root, ip, tc and Debian's docker-registry; the rows crane and
// containerd, which are about correctness, also what simtest/e2e/install.sh puts
// into $GRANARY_TOOLS. Images are made once and kept in -work, with the logs of
// every process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/peers/hostile"
)

// options are the command line.
type options struct {
	settings
	limits
	counts []int
	images []string
	rows   []string
	faults []string
	runs   int
	told   *figures.Set
}

func main() {
	playRole(os.Args[1:])
	o := parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// playRole is the program that a process of a lab is, if args name one.
func playRole(args []string) {
	if len(args) == 0 {
		return
	}
	switch args[0] {
	case "fetch":
		os.Exit(fetch(args[1:]))
	case "hostile":
		os.Exit(hostile.Main(args[1:]))
	}
}

func parse() *options {
	o := &options{settings: defaults()}
	split := func(to *[]string) func(string) error {
		return func(s string) error { *to = append(*to, strings.Split(s, ",")...); return nil }
	}
	flag.Func("n", "how many nodes; may be repeated (default 4)", func(s string) error {
		n, err := strconv.Atoi(s)
		if err == nil && (n < 2 || n > 200) {
			err = errors.New("from 2 to 200")
		}
		o.counts = append(o.counts, n)
		return err
	})
	flag.Func("image", "image190, blob1g or smallK; may be repeated (default image190)", split(&o.images))
	flag.Func("rows", "single, direct, separate, granary, staggered, idle, crane, containerd (default direct,granary)", split(&o.rows))
	flag.Func("fault", "a fault instead of rows, or all: "+strings.Join(faultNames(), ", "), split(&o.faults))
	flag.IntVar(&o.runs, "runs", 1, "how often each row is run")
	o.told = figures.Flag(flag.CommandLine)
	flag.StringVar(&o.Work, "work", o.Work, "where images and logs are kept")
	flag.StringVar(&o.Data, "data", "", "where nodes store, as /dev/shm (default in -work)")
	flag.StringVar(&o.Granary, "granary", "", "the binary (default: built from the source)")
	flag.StringVar(&o.LogLevel, "log-level", o.LogLevel, "of the nodes")
	flag.IntVar(&o.RegistryRate, "registry-rate", o.RegistryRate, "Mbit/s that leave the registry")
	flag.IntVar(&o.NodeRate, "node-rate", o.NodeRate, "Mbit/s of each node, each way")
	flag.DurationVar(&o.Settle, "settle", o.Settle, "between the nodes' knowing each other and the first pull")
	flag.BoolVar(&o.Alone, "alone", false, "let nodes know nothing of each other, and limit no egress in faults: to try the harness")
	flag.Float64Var(&o.Egress, "max-egress", 1.05, "copies that may leave the registry in rows of a cluster; 0 is no limit")
	flag.Float64Var(&o.Time, "max-time", 0, "what the slowest may take, in bounds, as 1.15; 0 is no limit")
	flag.BoolVar(&o.Requests, "max-requests", true, "limit the registry's requests to stripes + 5 per blob")
	flag.Parse()
	if len(o.counts) == 0 {
		o.counts = []int{4}
	}
	if len(o.images) == 0 {
		o.images = []string{"image190"}
	}
	if len(o.rows) == 0 {
		o.rows = []string{"direct", "granary"}
	}
	if slices.Contains(o.faults, "all") {
		o.faults = faultNames()
	}
	return o
}

func run(ctx context.Context, o *options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it takes root to make network namespaces")
	}
	if o.Granary == "" {
		if o.Granary, err = buildGranary(ctx, o.Work); err != nil {
			return err
		}
	}
	fmt.Printf("%s, %d CPUs, registry %d Mbit/s, nodes %d Mbit/s each way\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), o.RegistryRate, o.NodeRate)
	printHeader(os.Stdout)
	defer func() { err = errors.Join(err, o.told.Write()) }()
	failed := 0
	for _, n := range o.counts {
		k, err := o.runLab(ctx, n)
		if err != nil {
			return err
		}
		failed += k
	}
	if failed > 0 {
		return fmt.Errorf("%d rows failed", failed)
	}
	return nil
}

// runLab runs all rows with n nodes and returns how many failed.
func (o *options) runLab(ctx context.Context, n int) (failed int, err error) {
	l, err := newLab(ctx, o.settings, n)
	defer l.close()
	if err != nil {
		return 0, err
	}
	show := func(r *row) {
		r.print(os.Stdout)
		r.tell(o.told)
		if r.err != nil {
			failed++
		}
	}
	defer func() {
		if failed > 0 || err != nil {
			fmt.Println("logs are in", l.logs)
		}
	}()
	if len(o.faults) > 0 {
		return failed, l.runFaults(ctx, o.faults, show)
	}
	peers := knowsPeers(o.Granary)
	for _, name := range o.images {
		what, err := recipeOf(name)
		if err != nil {
			return failed, err
		}
		img, err := l.registry.ensure(ctx, what)
		if err != nil {
			return failed, err
		}
		for _, name := range repeated(o.rows, o.runs) {
			if !peers && !o.Alone && slices.Contains([]string{"granary", "staggered"}, name) {
				fmt.Printf("%s is left out: this granary has no --p2p-listen\n", name)
				continue
			}
			r, err := l.runRow(ctx, name, img, o.limits)
			if err != nil {
				return failed, err
			}
			if show(r); ctx.Err() != nil {
				return failed, ctx.Err()
			}
		}
	}
	return failed, nil
}

// repeated returns all rows so many times, in turns.
func repeated(rows []string, runs int) (all []string) {
	for range runs {
		all = append(all, rows...)
	}
	return all
}

func recipeOf(name string) (recipe, error) {
	if s, ok := strings.CutPrefix(name, "small"); ok {
		k, err := strconv.Atoi(s)
		return small(k), err
	}
	for _, r := range []recipe{image190, blob1G} {
		if r.name == name {
			return r, nil
		}
	}
	return recipe{}, fmt.Errorf("no image is called %q", name)
}
