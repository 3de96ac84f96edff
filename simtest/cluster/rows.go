package main

import (
	"context"
	"fmt"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// limits are what a cluster is held to; 0 is no limit.
type limits struct {
	Egress   float64 // copies of the image that leave the registry
	Time     float64 // of the slowest client, in copies of the image on the registry's link
	Requests bool    // whether those of the registry are limited
}

// runRow runs the row that name says.
func (l *lab) runRow(ctx context.Context, name string, img *image, lim limits) (*row, error) {
	switch name {
	case "single":
		return l.crowd(ctx, name, img, l.direct()[:1]), nil
	case "direct":
		return l.crowd(ctx, name, img, l.direct()), nil
	case "separate":
		return l.granary(ctx, name, img, true, limits{}), nil
	case "granary":
		return l.granary(ctx, name, img, l.Alone, lim), nil
	case "staggered":
		return l.staggered(ctx, img, lim), nil
	case "idle":
		return l.idle(ctx, img), nil
	case "crane":
		return l.tool(ctx, name, img, l.crane, lim), nil
	case "containerd":
		return l.tool(ctx, name, img, l.containerd, lim), nil
	}
	return nil, fmt.Errorf("no row is called %q", name)
}

// crowd has clients pull from the registry itself.
func (l *lab) crowd(ctx context.Context, name string, img *image, from []target) *row {
	return l.measure(ctx, name, []*image{img}, func(ctx context.Context, r *row) (err error) {
		r.n = len(from)
		if err := r.begin(l); err != nil {
			return err
		}
		if r.outcomes, err = pullNow(ctx, img, from...); err != nil {
			return err
		}
		return r.end(ctx, l)
	})
}

// granary has each client pull from the node on its machine, all at once: nodes
// of one cluster, or each alone.
func (l *lab) granary(ctx context.Context, name string, img *image, alone bool, lim limits) *row {
	return l.measure(ctx, name, []*image{img}, func(ctx context.Context, r *row) error {
		nodes, err := l.startNodes(ctx, len(l.spaces), alone)
		if err != nil {
			return err
		}
		if err := r.begin(l); err != nil {
			return err
		}
		if r.outcomes, err = pullNow(ctx, img, targets(nodes)...); err != nil {
			return err
		}
		if !alone {
			r.notePeers(ctx, nodes)
		}
		if err := r.end(ctx, l); err != nil {
			return err
		}
		return r.within(lim)
	})
}

// idle has a cluster do nothing for a while, and tells what a member then takes.
func (l *lab) idle(ctx context.Context, img *image) *row {
	const while = 20 * time.Second
	return l.measure(ctx, "idle", []*image{img}, func(ctx context.Context, r *row) error {
		nodes, err := l.startNodes(ctx, len(l.spaces), false)
		if err != nil {
			return err
		}
		if err := r.begin(l); err != nil {
			return err
		}
		before := nodes[0].CPU()
		if err := netns.Pause(ctx, while); err != nil {
			return err
		}
		r.note = fmt.Sprintf("an idle member took %.1f ms of CPU time a second. ", 1000*(nodes[0].CPU()-before)/while.Seconds())
		return r.end(ctx, l)
	})
}

// notePeers tells how much the members have given each other.
func (r *row) notePeers(ctx context.Context, nodes []*node) {
	var bytes float64
	for _, n := range nodes {
		bytes += n.metric(ctx, "granary_peer_bytes_total", `direction="in"`)
	}
	r.note = fmt.Sprintf("%.0f MB from peers. ", bytes/1e6)
}

// within holds a row to its limits.
func (r *row) within(lim limits) error {
	requests := 0
	if lim.Requests {
		requests = r.may
	}
	if err := r.atMost(lim.Egress, requests); err != nil {
		return err
	}
	if lim.Time > 0 && r.ratio() > lim.Time {
		return fmt.Errorf("the slowest took %.3f of the bound, at most %.2f may be", r.ratio(), lim.Time)
	}
	return nil
}

// staggered has a second node of the cluster pull ten seconds after the first.
func (l *lab) staggered(ctx context.Context, img *image, lim limits) *row {
	const delay = 10 * time.Second
	return l.measure(ctx, "staggered", []*image{img}, func(ctx context.Context, r *row) error {
		nodes, err := l.startNodes(ctx, len(l.spaces), l.Alone)
		if err != nil {
			return err
		}
		first, err := preparePull(ctx, img, nodes[0].target())
		if err != nil {
			return err
		}
		second, err := preparePull(ctx, img, nodes[1].target())
		if err != nil {
			return err
		}
		if err := r.begin(l); err != nil {
			return err
		}
		first.begin()
		if err := netns.Pause(ctx, delay); err != nil {
			return err
		}
		second.begin()
		r.outcomes = append(first.wait(), second.wait()...)
		late := r.outcomes[1].Seconds
		r.note = fmt.Sprintf("the late node took %.2f s, %.2f × its link's time. ", late, late/linkTime(img.size(), l.NodeRate).Seconds())
		if err := r.end(ctx, l); err != nil {
			return err
		}
		return r.within(limits{Egress: lim.Egress, Requests: lim.Requests})
	})
}
