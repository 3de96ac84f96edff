package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// stranger has a node with another secret pull beside a cluster. It is to find
// nobody, and nobody is to find it, so that two copies leave the registry.
func (t *trial) stranger(ctx context.Context) error {
	last := len(t.spaces) - 1
	nodes, err := t.cluster(ctx, last)
	if err != nil {
		return err
	}
	odd, err := t.startNode(ctx, last, "", t.secret("another"), t.Alone)
	if err != nil {
		return err
	}
	if err := netns.Pause(ctx, 3*time.Second); err != nil { // for gossip to do what it can
		return err
	}
	t.limit = 2.1
	if t.outcomes, err = pullNow(ctx, t.images[0], targets(append(nodes, odd))...); err != nil {
		return err
	}
	if bytes := odd.metric(ctx, "granary_peer_bytes_total", ""); bytes != 0 {
		return fmt.Errorf("a stranger has moved %.0f bytes from or to members", bytes)
	}
	if k := odd.members(ctx); k > 0 {
		return fmt.Errorf("a stranger has %d other members", k)
	}
	for _, n := range nodes {
		if k := n.members(ctx); k != last-1 && !t.Alone {
			return fmt.Errorf("%s has %d other members, want %d", n.Name, k, last-1)
		}
	}
	return nil
}

// partition cuts the cluster in two halves midway of a pull, lets both pull another
// image, and heals: the whole is then to be one cluster again, which a third
// image shows, or a fourth.
func (t *trial) partition(ctx context.Context) error {
	nodes, err := t.cluster(ctx, len(t.spaces))
	if err != nil {
		return err
	}
	t.limit = 1.75 // of four images: two of two, one of the third or of the fourth, and what is hedged meanwhile
	half := len(nodes) / 2
	a, b := t.spaces[:half], t.spaces[half:]
	cut := false
	defer func() {
		if cut {
			_ = heal(context.WithoutCancel(ctx), a, b)
		}
	}()
	err = t.breaking(ctx, t.images[0], nodes, nil, func() error { cut = true; return part(ctx, a, b) })
	if err != nil {
		return err
	}
	more, err := pullNow(ctx, t.images[1], targets(nodes)...)
	t.outcomes = append(t.outcomes, more...)
	if err != nil {
		return err
	}
	err = eventually(ctx, 40*time.Second, "the halves give each other up", func() bool {
		return t.Alone || !slices.ContainsFunc(nodes, func(n *node) bool { return n.members(ctx) >= len(nodes)-half })
	})
	if err = errors.Join(err, heal(ctx, a, b)); err != nil {
		return err
	}
	cut = false
	healed := time.Now()
	if !t.Alone {
		if err := t.together(ctx, 90*time.Second, nodes...); err != nil {
			return fmt.Errorf("after the partition: %w", err)
		}
	}
	t.note = fmt.Sprintf("one cluster again after %.0f s. ", time.Since(healed).Seconds())
	return t.asOne(ctx, nodes, t.images[2:]...)
}

// asOne has all pull images until one copy of one has left the registry, and not two, as of halves that
// do not know each other: when the first is pulled some may still be finding out that the others are back.
func (t *trial) asOne(ctx context.Context, nodes []*node, images ...*image) error {
	var copies float64
	for _, img := range images {
		before, err := t.registry.space.Sent()
		if err != nil {
			return err
		}
		more, err := pullNow(ctx, img, targets(nodes)...)
		t.outcomes = append(t.outcomes, more...)
		if err != nil {
			return err
		}
		after, err := t.registry.space.Sent()
		if err != nil {
			return err
		}
		if copies = float64(after-before) / float64(img.size()); copies <= 1.5 || t.Alone {
			return nil
		}
	}
	return fmt.Errorf("of the last image %.3f copies have left the registry", copies)
}

// rolling restarts one node after the other, each while all others pull an image,
// which it pulls itself when it is back. What it owns goes to others and comes
// back during the pull: twice its share may leave the registry again.
func (t *trial) rolling(ctx context.Context) error {
	nodes, err := t.cluster(ctx, len(t.spaces))
	if err != nil {
		return err
	}
	t.limit = 1.1 + 2/float64(len(nodes))
	var late int64 // bytes that left the registry when a node was back
	for i, n := range nodes {
		img := t.images[i]
		err := t.breaking(ctx, img, nodes, n, func() error {
			if n.StopWithin(40 * time.Second) {
				return fmt.Errorf("%s did not end on SIGTERM", n.Name)
			}
			return n.restart(ctx, n.Log)
		})
		if err != nil {
			return err
		}
		if !t.Alone {
			if err := t.together(ctx, 60*time.Second, nodes...); err != nil {
				return fmt.Errorf("after the restart of %s: %w", n.Name, err)
			}
		}
		before, err := t.registry.space.Sent()
		if err != nil {
			return err
		}
		more, err := pullNow(ctx, img, n.target())
		t.outcomes = append(t.outcomes, more...)
		if err != nil {
			return err
		}
		after, err := t.registry.space.Sent()
		if err != nil {
			return err
		}
		late += after - before
		t.note = fmt.Sprintf("%.3f of the copies for nodes that were back. ", float64(late)/float64(t.once))
	}
	return nil
}

// rotate replaces the cluster secret while all pull, without a moment in which
// two nodes do not understand each other: first all decrypt with the new key,
// then all encrypt with it, then the old key goes. A node that knows only the
// new key can then join.
func (t *trial) rotate(ctx context.Context) error {
	const reload = 12 * time.Second // after which every node has read the file again
	last := len(t.spaces) - 1
	nodes, err := t.cluster(ctx, last)
	if err != nil {
		return err
	}
	t.limit = nearlyOne
	for i, keys := range [][]string{{"secret", "new"}, {"new", "secret"}, {"new"}} {
		err := t.breaking(ctx, t.images[i], nodes, nil, func() error { t.writeSecret("secret", keys...); return nil })
		if err = errors.Join(err, netns.Pause(ctx, reload)); err != nil {
			return err
		}
	}
	fresh, err := t.startNode(ctx, last, "", t.writeSecret("secret", "new"), t.Alone)
	if err != nil {
		return err
	}
	nodes = append(nodes, fresh)
	if !t.Alone {
		if err := t.together(ctx, 30*time.Second, nodes...); err != nil {
			return fmt.Errorf("with the new secret: %w", err)
		}
	}
	return t.asOne(ctx, nodes, t.images[3])
}
