package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
	"github.com/granary-oci/granary/simtest/peers/hostile"
)

// startHostile starts a hostile member on machine i and waits until all nodes, and
// it, take each other for members.
func (l *lab) startHostile(ctx context.Context, i int, how hostile.Behaviour, nodes []*node) (*netns.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{self, "hostile", how.Name, l.spaces[i].Address, l.secret("secret"), zone}
	for _, n := range nodes {
		args = append(args, n.space.Address+":5053")
	}
	p, err := netns.Start(l.logFile("hostile"), l.spaces[i].Space, args...)
	if err != nil {
		return nil, err
	}
	l.after = append(l.after, func() { p.StopWithin(5 * time.Second) })
	err = l.allCount(ctx, nodes, "up", len(nodes))
	if err != nil && !p.Alive() {
		said, _ := os.ReadFile(p.Log)
		return nil, fmt.Errorf("%s has ended: %s", filepath.Base(p.Log), said)
	}
	return p, err
}

// allCount waits until each node counts so many other members in a state.
func (l *lab) allCount(ctx context.Context, nodes []*node, state string, count int) error {
	return eventually(ctx, 30*time.Second, fmt.Sprintf("each node counts %d members that are %s", count, state), func() bool {
		return !slices.ContainsFunc(nodes, func(n *node) bool {
			return n.metric(ctx, "granary_members", fmt.Sprintf("state=%q", state)) != float64(count)
		})
	})
}

// hostileAs returns a fault: the last machine has a hostile member, which owns its
// share of the image that all others pull at once.
func hostileAs(behaviour string) func(*trial, context.Context) error {
	return func(t *trial, ctx context.Context) error {
		how, ok := hostile.Named(behaviour)
		if !ok {
			return fmt.Errorf("no behaviour is called %q", behaviour)
		}
		return t.hostile(ctx, how)
	}
}

func (t *trial) hostile(ctx context.Context, how hostile.Behaviour) error {
	last := len(t.spaces) - 1
	nodes, err := t.cluster(ctx, last)
	if err != nil {
		return err
	}
	t.limit = 1.1 + 1/float64(len(t.spaces))
	if t.Alone {
		t.outcomes, err = pullNow(ctx, t.images[0], targets(nodes)...)
		return err
	}
	p, err := t.startHostile(ctx, last, how, nodes)
	if err != nil {
		return err
	}
	if t.outcomes, err = pullNow(ctx, t.images[0], targets(nodes)...); err != nil {
		return err
	}
	if !p.Alive() {
		return fmt.Errorf("%s has died", p.Name)
	}
	t.note = fmt.Sprintf("the hostile member is %s. ", how.State)
	return t.allCount(ctx, nodes, how.State, 1)
}
