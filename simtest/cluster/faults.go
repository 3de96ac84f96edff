package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// trial is a row in which something breaks.
type trial struct {
	*lab
	*row
	images []*image
	limit  float64 // copies of the images that may leave the registry
}

// faults are all there are. images says how many images a fault takes in a
// cluster of n.
var faults = []struct {
	name   string
	images func(n int) int
	run    func(*trial, context.Context) error
}{
	{"kill", one, (*trial).kill},
	{"dead-owner", func(int) int { return 3 }, (*trial).deadOwner},
	{"hang", one, (*trial).hang},
	{"registry-dies", one, (*trial).registryDies},
	{"stranger", one, (*trial).stranger},
	{"partition", func(int) int { return 4 }, (*trial).partition},
	{"rolling", func(n int) int { return n }, (*trial).rolling},
	{"rotate", func(int) int { return 4 }, (*trial).rotate},
	{"full-disk", one, (*trial).diskFull},
	{"wrong-bytes", one, hostileAs("wrong-bytes")},
	{"wrong-size", one, hostileAs("too-many-bytes")},
	{"wrong-claim", one, hostileAs("claim-of-another")},
	{"endless-data", one, hostileAs("endless-chunks")},
}

func one(int) int { return 1 }

func faultNames() (names []string) {
	for _, f := range faults {
		names = append(names, f.name)
	}
	return names
}

func (l *lab) runFaults(ctx context.Context, names []string, show func(*row)) error {
	if !l.Alone && !knowsPeers(l.Granary) {
		return errors.New("this granary has no --p2p-listen")
	}
	for _, name := range names {
		r, err := l.runFault(ctx, name)
		if err != nil {
			return err
		}
		if show(r); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (l *lab) runFault(ctx context.Context, name string) (*row, error) {
	for _, f := range faults {
		if f.name != name {
			continue
		}
		var images []*image
		for k := range f.images(len(l.spaces)) {
			img, err := l.registry.ensure(ctx, small(k))
			if err != nil {
				return nil, err
			}
			images = append(images, img)
		}
		return l.measure(ctx, "fault "+name, images, func(ctx context.Context, r *row) error {
			t := &trial{lab: l, row: r, images: images}
			err := f.run(t, ctx)
			if err = errors.Join(err, r.end(ctx, l)); err != nil || l.Alone {
				return err
			}
			return r.atMost(t.limit, 0)
		}), nil
	}
	return nil, fmt.Errorf("no fault is called %q", name)
}

// cluster starts the first count nodes and begins the measurement.
func (t *trial) cluster(ctx context.Context, count int) ([]*node, error) {
	nodes, err := t.startNodes(ctx, count, t.Alone)
	if err != nil {
		return nil, err
	}
	return nodes, t.begin(t.lab)
}

// breaking has all nodes pull an image and breaks something midway. The client
// of the node except, if there is one, does not count.
func (t *trial) breaking(ctx context.Context, img *image, nodes []*node, except *node, breakIt func() error) error {
	p, err := preparePull(ctx, img, targets(nodes)...)
	if err != nil {
		return err
	}
	p.begin()
	err = netns.Pause(ctx, linkTime(img.size(), t.RegistryRate)*2/5)
	if err == nil {
		err = breakIt()
	}
	for i, o := range p.waitBut(slices.Index(nodes, except)) {
		if nodes[i] != except {
			t.outcomes = append(t.outcomes, o)
		}
	}
	return err
}

// nearlyOne is one copy of a small image, of which two stripes have left the registry
// twice: a machine that is too busy to answer in time is hedged against.
const nearlyOne = 1.25

// registryDies leaves the cluster with what one node has, which is enough for a
// member that never saw the image and for one that joins later.
func (t *trial) registryDies(ctx context.Context) error {
	last := len(t.spaces) - 1
	nodes, err := t.cluster(ctx, last)
	if err != nil {
		return err
	}
	t.limit = nearlyOne
	if t.outcomes, err = pullNow(ctx, t.images[0], nodes[0].target()); err != nil {
		return err
	}
	if err := netns.Pause(ctx, 3*time.Second); err != nil { // the image is announced
		return err
	}
	t.registry.Kill()
	more, err := t.pullWithoutRegistry(ctx, nodes)
	t.outcomes = append(t.outcomes, more...)
	return errors.Join(err, t.reviveRegistry(context.WithoutCancel(ctx)))
}

func (t *trial) pullWithoutRegistry(ctx context.Context, nodes []*node) ([]outcome, error) {
	fresh, err := t.startNode(ctx, len(nodes), "", t.secret("secret"), t.Alone)
	if err != nil {
		return nil, err
	}
	if !t.Alone {
		if err := t.together(ctx, 30*time.Second, append(nodes, fresh)...); err != nil {
			return nil, err
		}
	}
	return pullNow(ctx, t.images[0], nodes[1].target(), fresh.target())
}

func (t *trial) reviveRegistry(ctx context.Context) error {
	r, err := startRegistry(ctx, t.registry.space, t.Work, t.registry.Log)
	if err == nil {
		r.read = t.registry.read
		t.registry = r
	}
	return err
}
