package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/netns"
)

// outcome is what it took a site to pull an image.
type outcome struct {
	took    time.Duration // until the last client had it
	payload int64         // bytes that came out of the line toward the site, of TCP and UDP
	all     int64         // with their headers and those of IP
	counted int64         // bytes of answers that the nodes say have come from their parent
}

// bound is how long an image takes on a line, without any headers.
func bound(img *image) time.Duration { return time.Duration(img.size * 8 * 1000 / rate) }

// pull has a client on each machine of each site pull an image, all at once.
func (l *lab) pull(ctx context.Context, img *image) ([]outcome, error) {
	return l.measure(ctx, img, func(s *site) (all []*netns.Space, base string) {
		for _, n := range s.nodes {
			all = append(all, n.space)
		}
		return all, "http://127.0.0.1:5050"
	})
}

// pullDirect is pull without any node: from the registry, through the lines.
func (l *lab) pullDirect(ctx context.Context, img *image) (all []outcome, err error) {
	if err := l.openRegistry(ctx, true); err != nil {
		return nil, err
	}
	defer func() {
		if shut := l.openRegistry(context.WithoutCancel(ctx), false); err == nil {
			err = shut
		}
	}()
	return l.measure(ctx, img, func(s *site) ([]*netns.Space, string) {
		return s.edge.nodes[:len(s.nodes)], "http://" + registryAddress + ":5000"
	})
}

func (l *lab) measure(ctx context.Context, img *image, from func(*site) ([]*netns.Space, string)) ([]outcome, error) {
	all := make([]outcome, len(l.sites))
	g, within := errgroup.WithContext(ctx)
	for i, s := range l.sites {
		clients, base := from(s)
		g.Go(func() error {
			var err error
			all[i], err = s.measure(within, func(ctx context.Context) error { return pullAll(ctx, img, clients, base) })
			return err
		})
	}
	return all, g.Wait()
}

// measure measures what something does to the line.
func (s *site) measure(ctx context.Context, do func(context.Context) error) (o outcome, err error) {
	before, err := s.fromParents(ctx)
	if err != nil {
		return o, err
	}
	payload, all, begin := s.line.ToFar.Payload.Load(), s.line.ToFar.All.Load(), time.Now()
	if err := do(ctx); err != nil {
		return o, fmt.Errorf("site %d, by %s: %w", s.number, s.by, err)
	}
	o.took = time.Since(begin)
	o.payload, o.all = s.line.ToFar.Payload.Load()-payload, s.line.ToFar.All.Load()-all
	after, err := s.fromParents(ctx)
	o.counted = after - before
	return o, err
}

// pullAll has a client on each machine pull an image.
func pullAll(ctx context.Context, img *image, from []*netns.Space, base string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range from {
		g.Go(func() error {
			c := &http.Client{Transport: &http.Transport{DialContext: s.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			defer c.CloseIdleConnections()
			n, err := netns.Pull(ctx, c, base+"/v2/"+img.name, tag, img.digest)
			if err == nil && n != img.size {
				err = fmt.Errorf("%d bytes, want %d", n, img.size)
			}
			if err != nil {
				return fmt.Errorf("client on %s: %w", s.Address, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// pullFlapping is pull while the lines are down and up in turn.
func (l *lab) pullFlapping(ctx context.Context, img *image) ([]outcome, error) {
	flapping, stop := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() { l.flap(flapping, flapEach); close(stopped) }()
	defer func() { stop(); <-stopped }()
	return l.pull(ctx, img)
}

// pullCut is pull of what the sites have while all lines are cut.
func (l *lab) pullCut(ctx context.Context, img *image) ([]outcome, error) {
	if _, err := l.pull(ctx, img); err != nil {
		return nil, err
	}
	l.cut(true)
	defer l.cut(false)
	return l.pull(ctx, img)
}
