package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/simtest/peers/hostile"
)

// pretend is a hostile member until SIGTERM.
//
//	cluster hostile BEHAVIOUR IP SECRETS JOIN...
func pretend(args []string) int {
	if len(args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: cluster hostile BEHAVIOUR IP SECRETS JOIN...")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := beHostile(ctx, args[0], args[1], args[2], args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster hostile:", err)
		return 1
	}
	return 0
}

func beHostile(ctx context.Context, behaviour, ip, secrets string, join []string) error {
	how, ok := hostile.Named(behaviour)
	if !ok {
		return fmt.Errorf("no behaviour is called %q", behaviour)
	}
	text, err := os.ReadFile(secrets)
	if err != nil {
		return err
	}
	identity, err := libp2p.NewIdentity()
	if err != nil {
		return err
	}
	cfg := hostile.Config{Identity: identity, P2P: "/ip4/" + ip + "/tcp/5052", Gossip: ip + ":5053", Join: join, Zone: zone}
	for line := range strings.Lines(string(text)) {
		cfg.Secrets = append(cfg.Secrets, []byte(strings.TrimSpace(line)))
	}
	m, err := hostile.Start(cfg, how)
	if err != nil {
		return err
	}
	return m.Run(ctx)
}

// startHostile starts a hostile member on machine i and waits until all nodes, and
// it, take each other for members.
func (l *lab) startHostile(ctx context.Context, i int, how hostile.Behaviour, nodes []*node) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{self, "hostile", how.Name, l.spaces[i].address, l.secret("secret")}
	for _, n := range nodes {
		args = append(args, n.space.address+":5053")
	}
	p, err := start(l.logFile("hostile"), l.spaces[i], args...)
	if err != nil {
		return nil, err
	}
	l.after = append(l.after, func() { p.stop(5 * time.Second) })
	err = l.allCount(ctx, nodes, "up", len(nodes))
	if err != nil && !p.alive() {
		said, _ := os.ReadFile(p.log)
		return nil, fmt.Errorf("%s has ended: %s", filepath.Base(p.log), said)
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
	if !p.alive() {
		return fmt.Errorf("%s has died", p.name)
	}
	t.note = fmt.Sprintf("the hostile member is %s. ", how.State)
	return t.allCount(ctx, nodes, how.State, 1)
}
