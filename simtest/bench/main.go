// Command bench measures a node beside other programs that serve the same bytes,
// in one run, and prints medians and their ratios.
//
//	go run ./simtest/bench [-runs 5] [-only warm,cold,link,ranges,clients,resolve]
//
// It needs Debian's nginx-light and docker-registry, for the cold pulls also
// distribution v3 (go install …/distribution/v3/cmd/registry), which it looks
// for in $GRANARY_TOOLS, and for the 1 Gbit/s link root, ip and tc. What is not
// there is left out of the table, with the reason. Systems take turns within
// each round, so that what disturbs the machine disturbs all of them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// options are what a run is about.
type options struct {
	runs  int
	only  []string
	warm  int64 // bytes of the warm blob
	cold  int64 // bytes of a cold blob
	reads int   // random reads of one round
}

func main() {
	o := options{}
	only := ""
	flag.IntVar(&o.runs, "runs", 5, "rounds of each measurement")
	flag.StringVar(&only, "only", "warm,cold,link,ranges,clients,resolve", "measurements to take")
	flag.Int64Var(&o.warm, "warm", 1<<30, "bytes of the warm blob")
	flag.Int64Var(&o.cold, "cold", 512<<20, "bytes of a cold blob")
	flag.IntVar(&o.reads, "reads", 2000, "random reads of 4 KiB in a round")
	flag.Parse()
	o.only = strings.Split(only, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	fmt.Printf("%s, %d CPUs, Go %s, %d rounds\n\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.Version()[2:], o.runs)
	for _, m := range []struct {
		name    string
		measure func(context.Context) error
	}{
		{"warm", b.warmBlob}, {"cold", b.coldBlob}, {"ranges", b.ranges}, {"clients", b.clients}, {"link", b.link}, {"resolve", b.resolve},
	} {
		if !slices.Contains(o.only, m.name) {
			continue
		}
		if err := m.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// column is one system's results of a measurement, a value for each round.
type column struct {
	system string
	rate   []float64 // MB/s
	cpu    []float64 // CPU seconds of the system's process
	size   int64     // bytes of one round
}

// table prints medians, and the ratio of each system's rate to that of the
// first, taken round by round.
func table(title string, columns []*column) {
	fmt.Println(title)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "system\tMB/s\tmin–max\tof "+columns[0].system+"\tCPU s/GiB\t")
	for _, c := range columns {
		ratio := make([]float64, len(c.rate))
		for i := range c.rate {
			ratio[i] = c.rate[i] / columns[0].rate[i]
		}
		cpu := "–"
		if len(c.cpu) > 0 {
			cpu = fmt.Sprintf("%.2f", median(c.cpu)/float64(c.size)*(1<<30))
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f–%.0f\t%.2f\t%s\t\n", c.system, median(c.rate), slices.Min(c.rate), slices.Max(c.rate), median(ratio), cpu)
	}
	_ = w.Flush()
	fmt.Println()
}

func median(v []float64) float64 { return quantile(v, 0.5) }

func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}
