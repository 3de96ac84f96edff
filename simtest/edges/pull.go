package main

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/sites"
)

// lab is the network with its registry, hub and sites.
type lab struct{ *sites.Lab }

// bound is how long an image takes on a line, without any headers.
func bound(img *sites.Image) time.Duration { return time.Duration(img.Size * 8 * 1000 / sites.Rate) }

// pull has a client on each machine of each site pull an image, all at once: the time is that until the last one has it.
func (l *lab) pull(ctx context.Context, img *sites.Image) ([]sites.Outcome, error) {
	return l.measure(ctx, img, sites.NodeURL)
}

// pullDirect is pull without any node: from the registry, through the lines.
func (l *lab) pullDirect(ctx context.Context, img *sites.Image) (all []sites.Outcome, err error) {
	if err := l.OpenRegistry(ctx, true); err != nil {
		return nil, err
	}
	defer func() {
		if shut := l.OpenRegistry(context.WithoutCancel(ctx), false); err == nil {
			err = shut
		}
	}()
	return l.measure(ctx, img, sites.RegistryURL)
}

func (l *lab) measure(ctx context.Context, img *sites.Image, from string) ([]sites.Outcome, error) {
	all := make([]sites.Outcome, len(l.Sites))
	g, within := errgroup.WithContext(ctx)
	for i, s := range l.Sites {
		g.Go(func() error {
			var err error
			all[i], err = s.Measure(within, func(ctx context.Context) error { return pullAll(ctx, img, s.Nodes, from) })
			return err
		})
	}
	return all, g.Wait()
}

// pullAll has a client on the machine of each node pull an image.
func pullAll(ctx context.Context, img *sites.Image, nodes []*sites.Node, from string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error { return img.Pull(ctx, n.Space, from) })
	}
	return g.Wait()
}

// pullFlapping is pull while the lines are down and up in turn.
func (l *lab) pullFlapping(ctx context.Context, img *sites.Image) ([]sites.Outcome, error) {
	flapping, stop := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() { l.Flap(flapping, flapEach); close(stopped) }()
	defer func() { stop(); <-stopped }()
	return l.pull(ctx, img)
}

// pullCut is pull of what the sites have while all lines are cut.
func (l *lab) pullCut(ctx context.Context, img *sites.Image) ([]sites.Outcome, error) {
	if _, err := l.pull(ctx, img); err != nil {
		return nil, err
	}
	l.Cut(true)
	defer l.Cut(false)
	return l.pull(ctx, img)
}
