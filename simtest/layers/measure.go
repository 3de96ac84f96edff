package main

import (
	"context"
	"fmt"
	"time"
)

// cost is what a command took.
type cost struct {
	traffic
	took time.Duration // of the program from its start to its end
}

// costs are what it takes to look into an image through a node that has nothing of
// it: first to list it, then to read a small file, and then a large one.
type costs struct{ list, small, large cost }

// measure measures an image.
func (l *lab) measure(ctx context.Context, name string) (c costs, err error) {
	n, err := l.startNode(ctx)
	if err != nil {
		return c, err
	}
	defer func() { err = joined(err, n.end()) }()
	ref := name + ":v1"
	if c.list, err = n.cost(ctx, -1, "ls", "-R", ref); err != nil {
		return c, err
	}
	if c.small, err = n.cost(ctx, smallSize, "cat", ref, "/"+smallFile); err != nil {
		return c, err
	}
	c.large, err = n.cost(ctx, l.large(), "cat", ref, "/"+largeFile)
	return c, err
}

// cost runs a command, which is to print so many bytes, if that is known.
func (n *node) cost(ctx context.Context, size int, command string, args ...string) (cost, error) {
	before, begin := n.lab.registry.gate.traffic(), time.Now()
	out, err := n.run(ctx, command, args...)
	c := cost{n.lab.registry.gate.since(before), time.Since(begin)}
	if err == nil && size >= 0 && len(out) != size {
		err = fmt.Errorf("%s %v: %d bytes, want %d", command, args, len(out), size)
	}
	return c, err
}
