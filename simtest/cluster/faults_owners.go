package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// kill ends an owner while it is needed. What it alone has fetched, at most its
// share, leaves the registry again.
func (t *trial) kill(ctx context.Context) error {
	nodes, err := t.cluster(ctx, len(t.spaces))
	if err != nil {
		return err
	}
	victim := nodes[len(nodes)-1]
	t.gone = []*node{victim}
	t.limit = 1.1 + 1/float64(len(nodes))
	return t.breaking(ctx, t.images[0], nodes, victim, func() error { victim.Kill(); return nil })
}

// deadOwner has the others pull an image just after an owner has died, when they
// still take it for alive, and another one after that. The first costs what it
// takes to find out, at most 2.5 s, the second nothing.
func (t *trial) deadOwner(ctx context.Context) error {
	nodes, err := t.cluster(ctx, len(t.spaces))
	if err != nil {
		return err
	}
	victim := nodes[len(nodes)-1]
	t.gone, t.limit = []*node{victim}, nearlyOne
	var slowest []float64
	for i, img := range t.images {
		if i == 1 {
			victim.Kill()
		}
		all, err := pullNow(ctx, img, targets(nodes[:len(nodes)-1])...)
		if err != nil {
			return err
		}
		t.outcomes = append(t.outcomes, all...)
		slowest = append(slowest, slices.MaxFunc(all, func(a, b outcome) int { return cmp.Compare(a.Seconds, b.Seconds) }).Seconds)
	}
	first, second := slowest[1]-slowest[0], slowest[2]-slowest[0]
	t.note = fmt.Sprintf("the dead owner added %.2f s, and then %.2f s. ", first, second)
	if !t.BytesOnly && (first > 2.5 || second > 0.5) {
		return errors.New("the dead owner cost more than 2.5 s, or cost again")
	}
	return nil
}

// hang stops an owner: its connections stay, and nothing comes.
func (t *trial) hang(ctx context.Context) error {
	nodes, err := t.cluster(ctx, len(t.spaces))
	if err != nil {
		return err
	}
	victim := nodes[len(nodes)-1]
	t.limit = 1.1 + 1/float64(len(nodes))
	defer victim.Signal(syscall.SIGCONT)
	return t.breaking(ctx, t.images[0], nodes, victim, func() error { victim.Signal(syscall.SIGSTOP); return nil })
}

// diskFull gives one node a disk that holds a third of the image.
func (t *trial) diskFull(ctx context.Context) error {
	last := len(t.spaces) - 1
	nodes, err := t.startNodes(ctx, last, t.Alone)
	if err != nil {
		return err
	}
	dir, err := t.fullDisk("full", int(t.images[0].size()/3))
	if err != nil {
		return err
	}
	small := &node{space: t.spaces[last], args: append(t.arguments(last, dir+"/node", t.secret("secret"), t.Alone), "--cache-size", "10GiB")}
	t.nodes = append(t.nodes, small)
	if err := small.restart(ctx, t.logFile("node-full")); err != nil {
		return err
	}
	if nodes = append(nodes, small); !t.Alone {
		if err := t.together(ctx, 30*time.Second, nodes...); err != nil {
			return err
		}
	}
	t.limit = 1.1 + 1/float64(len(nodes))
	if err := t.begin(t.lab); err != nil {
		return err
	}
	t.outcomes, err = pullNow(ctx, t.images[0], targets(nodes)...)
	return err
}
