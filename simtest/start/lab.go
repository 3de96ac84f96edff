package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// lab is a registry with the image in every format, behind a link, and machines.
type lab struct {
	net      *network
	registry *registry
	images   map[string]*image // by format
	granary  string            // the program
	logLevel string
	dir      string // of all that a run makes
	logs     string
	label    string // of the row, in names of files
	secret   string // file with the cluster's
}

// newLab makes the network, and starts the registry. It is to be closed, even if this
// fails.
func newLab(ctx context.Context, o *options) (l *lab, err error) {
	l = &lab{images: make(map[string]*image), granary: o.granary, logLevel: o.logLevel, label: "setup", logs: filepath.Join(o.work, "logs")}
	netns.SweepRuns(o.work)
	l.dir = filepath.Join(o.work, fmt.Sprint("run-", os.Getpid()))
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return l, err
	}
	l.secret = filepath.Join(l.dir, "secret")
	err = errors.Join(os.RemoveAll(l.logs), os.MkdirAll(l.logs, 0o755), os.WriteFile(l.secret, []byte("the secret of these nodes, and of no others\n"), 0o600))
	if err != nil {
		return l, err
	}
	if l.granary == "" {
		l.granary = filepath.Join(l.dir, "granary")
		if err := netns.BuildGranary(ctx, l.granary); err != nil {
			return l, err
		}
	}
	if l.net, err = newNetwork(ctx, 2, o.rate, o.delay, o.tracer()); err != nil {
		return l, err
	}
	l.registry, err = startRegistry(ctx, l.net.registry, o.work, l.logFile("registry"))
	return l, err
}

// makeImages makes the images that are not there yet.
func (l *lab) makeImages(ctx context.Context, o *options) error {
	folder := filepath.Join(o.work, "image-"+o.subject.name)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	layers, err := o.subject.layers(ctx, folder)
	if err != nil {
		return err
	}
	for _, name := range o.formats {
		f, err := formatNamed(name)
		if err != nil {
			return err
		}
		note := filepath.Join(folder, name+".json")
		if l.images[name], err = l.registry.ensure(ctx, f, note, layers, o.subject.commands); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) close() {
	if l.registry != nil {
		l.registry.Stop()
	}
	if l.net != nil {
		l.net.close()
	}
	if l.dir != "" {
		netns.UnmountBelow(l.dir)
		_ = os.RemoveAll(l.dir)
	}
}

func (l *lab) logFile(name string) string { return filepath.Join(l.logs, l.label+"-"+name+".log") }

// outcome is what it took until a command had printed.
type outcome struct {
	mounted  time.Duration // until it could begin
	took     time.Duration // until it had printed
	bytes    int64         // that came from the registry, of TCP
	peers    int64         // that came from other members, of chunks
	requests int           // to the registry; 0 is not known
	cpu      float64       // seconds that the node and the mount have used; 0 is not known
	note     string
}

// stopwatch measures one command.
type stopwatch struct {
	l     *lab
	begin time.Time
	bytes int64
	at    time.Duration // when it was mounted
}

func (l *lab) watch() *stopwatch {
	l.net.trace.start(l.label)
	return &stopwatch{l: l, begin: time.Now(), bytes: l.net.wire.ToFar.Payload.Load()}
}

func (w *stopwatch) mounted() {
	w.at = time.Since(w.begin)
	w.l.net.trace.say("mounted")
}

func (w *stopwatch) stop() outcome {
	w.l.net.trace.say("printed")
	return outcome{mounted: w.at, took: time.Since(w.begin), bytes: w.l.net.wire.ToFar.Payload.Load() - w.bytes}
}
