// Command bench takes all measurements of Granary in one place, beside the programs that do the same and are installed here, and
// prints them as one table.
//
//	go run ./simtest/bench [-quick | -full] [-only warm,cold] [-out DIR] [-readme README.md]
//
// Measurements are made in groups (groups.go): of a node beside nginx, docker-registry and distribution v3 as pull-through caches,
// which serve the same bytes in turns, so that what disturbs the machine disturbs all; by the other commands of simtest, as cluster
// and start, which write their figures to a file; and by the benchmarks of packages. Each has a limit on its time. What cannot be
// measured here is in the table with the reason, and so is a group that fails, after which the others go on; the exit status is then 1.
//
// -quick takes a few minutes, and says more of whether all of it works than of how fast; without it it is half an hour, and with -full
// several. The table is printed in Markdown, or written with -out to results.md and, with the values of all rounds, results.json.
// With -only the other groups stay in these as they were. -readme writes a few rows of it into a document, between two lines that mark where; a test compares those of README.md with results.json
// in this folder:
//
//	go run ./simtest/bench -out simtest/bench -readme README.md
//
// It takes root for all that there is, and what simtest/e2e/install.sh installs and puts into $GRANARY_TOOLS. What programs
// say meanwhile goes to standard error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// options are the command line.
type options struct {
	quick, full bool
	only        []string
	out, readme string
}

func main() {
	var o options
	flag.BoolVar(&o.quick, "quick", false, "take a few minutes, with small sizes")
	flag.BoolVar(&o.full, "full", false, "take hours, with more rounds and all sizes")
	flag.Func("only", "`groups` to run, of "+strings.Join(names(), ",")+"; none writes again what there is", func(s string) error {
		o.only = strings.Split(s, ",")
		for _, name := range o.only {
			if name != "none" && !slices.Contains(names(), name) {
				return fmt.Errorf("there is no group %q", name)
			}
		}
		return nil
	})
	flag.StringVar(&o.out, "out", "", "`directory` that results.md and results.json are written to")
	flag.StringVar(&o.readme, "readme", "", "`document` to write the rows into that it quotes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := o.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o options) scale() (scale, error) {
	switch {
	case o.quick && o.full:
		return "", errors.New("-quick and -full are two ways to run it")
	case o.quick:
		return quick, nil
	case o.full:
		return full, nil
	}
	return usual, nil
}

// run runs the groups, and writes what there is of them whatever becomes of some.
func (o options) run(ctx context.Context) error {
	s, err := o.scale()
	if err != nil {
		return err
	}
	b, err := newBench(ctx, s)
	if err != nil {
		return err
	}
	defer b.close()
	r := newReport(ctx, s, b.dir)
	if err := o.keep(r); err != nil {
		return err
	}
	var errs []error
	for _, g := range groups {
		if len(o.only) > 0 && !slices.Contains(o.only, g.name) {
			continue
		}
		found := b.runGroup(ctx, g)
		if ctx.Err() != nil {
			break // what was interrupted has found nothing
		}
		errs = append(errs, found.err())
		r.put(found)
		if err := o.save(r); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if o.out == "" {
		errs = append(errs, r.markdown(os.Stdout))
	}
	if o.readme != "" {
		errs = append(errs, r.quoteIn(o.readme))
	}
	return errors.Join(append(errs, o.save(r), ctx.Err())...)
}

// keep takes over what an earlier run has found, unless all groups are to be run.
func (o options) keep(r *report) error {
	if len(o.only) == 0 || o.out == "" {
		return nil
	}
	earlier, err := readReport(filepath.Join(o.out, "results.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = r.keep(earlier)
	}
	return err
}

// save writes the results. It does so after each group, for it may be long until the next one has ended.
func (o options) save(r *report) error {
	if o.out == "" {
		return nil
	}
	return errors.Join(os.MkdirAll(o.out, 0o755), r.save(filepath.Join(o.out, "results.md"), r.markdown), r.save(filepath.Join(o.out, "results.json"), r.json))
}
