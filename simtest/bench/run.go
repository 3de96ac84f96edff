package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/netns"
)

// bench is what groups share.
type bench struct {
	scale   scale
	commit  string
	dir     string // of everything that is written
	granary func() (string, error)
}

func newBench(ctx context.Context, s scale) (*bench, error) {
	dir, err := os.MkdirTemp("", "granary-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{scale: s, commit: commit(ctx), dir: dir}
	b.granary = sync.OnceValues(func() (string, error) {
		file := filepath.Join(dir, "granary")
		return file, netns.BuildGranary(ctx, file)
	})
	return b, nil
}

func (b *bench) close() { _ = os.RemoveAll(b.dir) }

// of chooses by scale.
func of[T any](b *bench, small, medium, large T) T {
	return map[scale]T{quick: small, usual: medium, full: large}[b.scale]
}

// outcome is what came of a group.
type outcome struct {
	Name    string           `json:"name"`
	Title   string           `json:"title"`
	Begun   time.Time        `json:"begun"`
	Commit  string           `json:"commit"`            // with a + if the sources differ from it
	Seconds float64          `json:"seconds"`           // that it took
	Load    string           `json:"load"`              // of the machine in the minute before
	Missing string           `json:"missing,omitempty"` // why it was not run
	Error   string           `json:"error,omitempty"`
	Figures []figures.Figure `json:"figures"`
}

// runGroup runs a group, within its time.
func (b *bench) runGroup(ctx context.Context, g group) outcome {
	o := outcome{Name: g.name, Title: g.title, Begun: time.Now().UTC().Truncate(time.Second), Commit: b.commit, Load: firstWord("/proc/loadavg"), Missing: b.missing(g)}
	if o.Missing != "" {
		return o
	}
	fmt.Fprintf(os.Stderr, "== %s: %s\n", g.name, g.title)
	ctx, cancel := context.WithTimeoutCause(ctx, g.limit, fmt.Errorf("it has taken more than %v", g.limit))
	defer cancel()
	var set figures.Set
	if err := g.measure(ctx, b, &set); err != nil {
		o.Error = errors.Join(err, context.Cause(ctx)).Error()
	} else if len(set.All) == 0 {
		o.Error = "it has told no figures"
	}
	o.Seconds, o.Figures = time.Since(o.Begun).Seconds(), set.All
	return o
}

// missing says why a group is not run.
func (b *bench) missing(g group) string {
	if g.onlyFull && b.scale != full {
		return "it takes too long for other runs than -full"
	}
	var reasons []string
	for _, name := range g.needs {
		if name == "root" {
			if os.Geteuid() != 0 {
				reasons = append(reasons, "it takes root")
			}
		} else if _, err := netns.Tool(name); err != nil {
			reasons = append(reasons, err.Error())
		}
	}
	return strings.Join(reasons, "; ")
}
