package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/netns"
)

// row is one measurement: what the clients saw, what left the registry, and
// what the nodes cost.
type row struct {
	system   string
	n        int
	image    *image // of the times
	once     int64  // bytes of all that is pulled, each image once
	bound    time.Duration
	outcomes []outcome // of the clients that count
	gone     []*node   // nodes that may be dead

	egress        int64
	requests, may int // of the registry, and how many there may be
	cpu           float64
	rss           int64
	busy          float64 // of all CPUs, 0 to 1
	note          string
	err           error

	sentBefore, busyBefore, allBefore float64
}

// measure runs a row: work starts the nodes, and what it does between begin and
// end is measured.
func (l *lab) measure(ctx context.Context, system string, images []*image, work func(context.Context, *row) error) *row {
	r := &row{system: system, n: len(l.spaces), image: images[0]}
	for _, img := range images {
		r.once += img.size()
		r.may += img.requests(r.n)
	}
	r.bound = linkTime(r.image.size(), l.RegistryRate)
	l.label = strings.ReplaceAll(system, " ", "-") + "-" + r.image.Name
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute+2*time.Duration(r.n)*linkTime(r.once, l.RegistryRate))
	defer cancel()
	defer l.stopNodes()
	r.err = work(ctx, r)
	return r
}

func (r *row) begin(l *lab) error {
	sent, err := l.registry.space.Sent()
	r.sentBefore = float64(sent)
	l.registry.requests()
	r.busyBefore, r.allBefore = busyTicks()
	return err
}

// end takes the counters, the nodes being still there, and looks whether clients
// and nodes are well.
func (r *row) end(ctx context.Context, l *lab) error {
	sent, err := l.registry.space.Sent()
	r.egress = sent - int64(r.sentBefore)
	busy, all := busyTicks()
	r.busy = (busy - r.busyBefore) / (all - r.allBefore)
	errs := []error{err}
	for _, n := range l.nodes {
		r.cpu += n.cpus + n.CPU()
		r.rss = max(r.rss, n.Peak())
		if !n.Alive() && !slices.Contains(r.gone, n) {
			errs = append(errs, fmt.Errorf("%s has died", n.Name))
		}
	}
	_ = netns.Pause(ctx, 200*time.Millisecond) // for the log of the last request
	r.requests = l.registry.requests()
	for _, o := range r.outcomes {
		if o.Error != "" {
			errs = append(errs, errors.New(o.Error))
		}
	}
	return errors.Join(errs...)
}

// copies returns how often what is pulled has left the registry.
func (r *row) copies() float64 { return float64(r.egress) / float64(r.once) }

// atMost fails the row if more copies left the registry, or more requests
// reached it, than may; 0 is no limit.
func (r *row) atMost(copies float64, requests int) error {
	if copies > 0 && r.copies() > copies {
		return fmt.Errorf("%.3f copies have left the registry, at most %.2f may", r.copies(), copies)
	}
	if requests > 0 && r.requests > requests {
		return fmt.Errorf("the registry got %d requests, at most %d may", r.requests, requests)
	}
	return nil
}

func (r *row) seconds() (all []float64) {
	for _, o := range r.outcomes {
		all = append(all, o.Seconds)
	}
	slices.Sort(all)
	return all
}

// ratio returns the time of the slowest beside that of one copy of the bytes on
// the registry's link.
func (r *row) ratio() float64 {
	if len(r.outcomes) == 0 {
		return 0
	}
	return slices.Max(r.seconds()) / r.bound.Seconds()
}

const line = "%-22s %2s %-10s %8s %8s %8s %8s %10s %8s %8s %6s  %s\n"

func printHeader(w io.Writer) {
	fmt.Fprintf(w, line, "system", "N", "image", "median s", "max s", "÷ bound", "egress ×", "requests", "CPU s", "RSS MiB", "busy", "")
}

func (r *row) print(w io.Writer) {
	median, slowest := "–", "–"
	if all := r.seconds(); len(all) > 0 {
		median, slowest = fmt.Sprintf("%.2f", figures.Median(all)), fmt.Sprintf("%.2f", all[len(all)-1])
	}
	note := r.note
	if r.busy > 0.9 {
		note = "CPU-bound " + note
	}
	if r.err != nil {
		note += "FAILED: " + strings.ReplaceAll(r.err.Error(), "\n", "; ")
	} else {
		note += "OK"
	}
	fmt.Fprintf(w, line, r.system, fmt.Sprint(r.n), r.image.Name, median, slowest, fmt.Sprintf("%.3f", r.ratio()), fmt.Sprintf("%.3f", r.copies()),
		fmt.Sprintf("%d/%d", r.requests, r.may), fmt.Sprintf("%.2f", r.cpu), fmt.Sprint(r.rss>>20), fmt.Sprintf("%.0f%%", r.busy*100), note)
}
