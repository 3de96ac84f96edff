// Command reads measures how files of an image that is complete on disk are read: from
// ext4, from EROFS, both mounted from an image in a file, and from granary's mount, with
// files that the kernel reads by itself and without.
//
//	go run ./simtest/reads [-runs 5] [-figures FILE]
//
// The tree has one file of 256 MiB of noise, and 50,000 of 2 KiB in 500 directories; for
// the mount it is one layer of eStargz that a registry in this process serves to a node,
// which has fetched what is read before anything is measured. Each round mounts each system
// anew: what is read first is not in that mount's memory, but what is beneath it is, the
// node's files and the images of the others, so that no disk is measured. What is read
// again is in memory. Systems take turns within each round.
//
// It takes root, FUSE, mkfs.ext4 and mkfs.erofs, and about 2 GiB in $TMPDIR, which must
// not be on an overlay.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
)

// options are what a run is about.
type options struct {
	runs    int
	big     int // bytes of the large file
	small   int // how many small files there are
	cat     int // how many of them are read
	random  int // reads of 4 KiB in a round
	profile string
	told    *figures.Set
}

func main() {
	var o options
	flag.IntVar(&o.runs, "runs", 5, "`rounds` of each measurement; what is printed is the median")
	flag.IntVar(&o.big, "big", 256<<20, "`bytes` of the large file")
	flag.IntVar(&o.small, "small", 50_000, "how many small `files` there are")
	flag.IntVar(&o.cat, "cat", 20_000, "how many of the small `files` are read")
	flag.IntVar(&o.random, "random", 20_000, "`reads` of 4 KiB in a round")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of the node, of a minute, to a `file`")
	o.told = figures.Flag(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "reads:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	l, err := newLab(ctx, o)
	defer l.close()
	if err != nil {
		return err
	}
	stopProfile := l.profile(ctx)
	results := make(map[string]map[string][]float64) // by measure and system
	for round := range o.runs {
		for i := range l.systems {
			s := l.systems[(i+round)%len(l.systems)]
			if err := l.measure(ctx, s, results); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	if err := stopProfile(); err != nil {
		return err
	}
	l.print(results)
	l.tell(results)
	return l.told.Write()
}

// print prints medians, and their ratio to those of the first system.
func (l *lab) print(results map[string]map[string][]float64) {
	fmt.Printf("%s, %d CPUs, Linux %s, medians of %d\n\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), kernel(), l.runs)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprint(w, "| |")
	for _, s := range l.systems {
		fmt.Fprintf(w, "\t %s |", s.name)
	}
	fmt.Fprint(w, "\n|---|")
	for range l.systems {
		fmt.Fprint(w, "\t--:|")
	}
	fmt.Fprintln(w)
	for _, m := range l.measures() {
		fmt.Fprintf(w, "| %s, %s |", m.name, m.unit)
		for i, s := range l.systems {
			value := figures.Median(results[m.name][s.name])
			fmt.Fprintf(w, "\t %s", rate(value))
			if i > 0 {
				fmt.Fprintf(w, " (%.2f)", value/figures.Median(results[m.name][l.systems[0].name]))
			}
			fmt.Fprint(w, " |")
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
}

// tell adds the figures. All are seen beside the first system.
func (l *lab) tell(results map[string]map[string][]float64) {
	for _, m := range l.measures() {
		by := figures.Measurement{Name: m.name, Unit: m.unit}
		for i, s := range l.systems {
			for _, v := range results[m.name][s.name] {
				l.told.Add(by, s.name, v)
			}
			if i > 0 {
				l.told.Compare(by, s.name, l.systems[0].name)
			}
		}
	}
}

func rate(v float64) string {
	if v < 10_000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.0fk", v/1000)
}
