package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
)

const module = "github.com/granary-oci/granary/"

// command is a group that a command of simtest measures, with arguments for each scale.
func command(name, small, medium, large string) func(context.Context, *bench, *figures.Set) error {
	return func(ctx context.Context, b *bench, into *figures.Set) error {
		program, file := filepath.Join(b.dir, name), filepath.Join(b.dir, name+".json")
		if err := toolchain(ctx, "build", "-o", program, module+"simtest/"+name).Run(); err != nil {
			return fmt.Errorf("build: %w", err)
		}
		run := politely(ctx, program, append(strings.Fields(of(b, small, medium, large)), "-figures", file)...)
		run.Stdout = os.Stderr
		err := run.Run()
		all, readErr := figures.Read(file) // some there may be of a command that failed
		into.All = all
		if err == nil {
			err = readErr
		}
		return err
	}
}

// politely returns a command that is interrupted when there is no more time, so that it can clean up.
func politely(ctx context.Context, program string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, program, args...)
	c.Stderr = os.Stderr
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = time.Minute
	return c
}

func toolchain(ctx context.Context, args ...string) *exec.Cmd { return politely(ctx, "go", args...) }

// benchmarked are the benchmarks that are run, by package.
var benchmarked = []struct{ in, pattern string }{
	{"chunkstore/chunk", "^BenchmarkReader$"},
	{"toc/cdc", "."},
	{"toc/gzip", "^BenchmarkBuild$"},
	{"toc/recipe", "^Benchmark$/^(find|rebuild)$/^(go|pgzip)"},
	{"toc", "^BenchmarkDecodeJSON$/^10000$"},
	{"proxy/rebuild", "^BenchmarkSift$"},
	{"p2p/libp2p", "^Benchmark(Bulk|PingPong|Verify)$"},
}

// benchmarks is the group of the packages' own benchmarks.
func benchmarks(ctx context.Context, b *bench, into *figures.Set) error {
	for _, p := range benchmarked {
		var out bytes.Buffer
		test := toolchain(ctx, "test", "-run", "^$", "-bench", p.pattern, "-cpu", "1", "-count", of(b, "1", "5", "10"), "-benchtime", of(b, "100ms", "1s", "1s"), module+p.in)
		test.Stdout = &out
		err := test.Run()
		addBenchmarks(into, p.in, out.String())
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", p.in, err, out.String())
		}
	}
	return nil
}

// addBenchmarks adds the results in what "go test -bench" prints (go.dev/design/14313-benchmark-format): lines of a name, a
// count of iterations, and pairs of a value and its unit.
func addBenchmarks(into *figures.Set, in, text string) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || len(fields)%2 != 0 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		if n, err := strconv.Atoi(fields[1]); err != nil || n < 1 {
			continue
		}
		name := strings.TrimLeft(strings.TrimPrefix(fields[0], "Benchmark"), "/")
		rated := strings.Contains(line, "MB/")
		for i := 2; i < len(fields); i += 2 {
			if unit := fields[i+1]; rated && unit == "ns/op" || unit == "B/op" || unit == "allocs/op" {
				continue // a rate says the same, and the rest is for who works on the package
			}
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
				into.Add(figures.Measurement{Name: strings.TrimSuffix(in+" "+name, " "), Unit: fields[i+1]}, granary, v)
			}
		}
	}
}
