package main

import (
	"context"
	"fmt"

	"github.com/granary-oci/granary/simtest/containerd"
)

// containerdConfig has a containerd run on the first machine.
func (l *lab) containerdConfig() containerd.Config {
	return containerd.Config{Space: l.net.nodes[0], Dir: l.dir, Log: l.logFile}
}

// fullPull has containerd pull and unpack the image from the registry.
func fullPull(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
	d, err := containerd.Start(ctx, l.containerdConfig())
	if err != nil {
		return nil, err
	}
	defer d.End()
	return l.pullAndRun(ctx, d, img, c)
}

// bySnapshotter has containerd's snapshotter for eStargz mount the image.
func bySnapshotter(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
	d, err := containerd.StartStargz(ctx, l.containerdConfig(), l.registry.address())
	if err != nil {
		return nil, err
	}
	defer d.End()
	return l.pullAndRun(ctx, d, img, c)
}

// pullAndRun has containerd pull an image from the registry, mount what it has made of it,
// and runs the command there: what a runtime does, but for the container's own isolation.
func (l *lab) pullAndRun(ctx context.Context, d *containerd.Daemon, img *image, c command) ([]measured, error) {
	w := l.watch()
	root, err := d.Mount(ctx, l.registry.address()+"/"+img.Format+":"+tag)
	if err != nil {
		return nil, err
	}
	w.mounted()
	if err := c.Run(ctx, root); err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	return []measured{{outcome: w.stop()}}, nil
}
