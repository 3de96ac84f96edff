package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// upgrade restarts one node after the other with the other build. The one whose clock can be set has but one, and is only
// restarted.
func (l *lab) upgrade(ctx context.Context, e event) (func(context.Context) error, error) {
	for i, n := range l.nodes {
		e.Node = i
		up := l.down(e, func(n *node) { n.end(); n.build = 1 - n.build })
		if err := up(ctx); err != nil {
			return nil, err
		}
		if err := n.isUpgraded(ctx); err != nil {
			return nil, err
		}
		if err := netns.Pause(ctx, time.Second); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (n *node) isUpgraded(ctx context.Context) error {
	n.busy.Lock()
	defer n.busy.Unlock()
	want := n.lab.versions[n.build]
	if n.hasClock() || want == "" || !n.Alive() {
		return nil
	}
	s, err := n.status(ctx)
	if err == nil && s.Version != want {
		err = fmt.Errorf("node %d is version %q, want %q", n.index+1, s.Version, want)
	}
	return err
}

// secretStep is how long nodes take to read the file of secrets again, which they look at every two seconds, and a bit.
const secretStep = 5 * time.Second

// rotate replaces the cluster's secret: first all decrypt with the new one, then all encrypt with it, then the old one goes.
func (l *lab) rotate(ctx context.Context, e event) (func(context.Context) error, error) {
	end := l.history.begin(e, other)
	defer end()
	before, after := l.secret, fmt.Sprintf("%x", e.Seed)
	var err error
	for _, keys := range [][]string{{before, after}, {after, before}, {after}} {
		l.writeSecret(keys...)
		err = errors.Join(err, netns.Pause(ctx, secretStep))
	}
	l.secret = after
	return nil, err
}
