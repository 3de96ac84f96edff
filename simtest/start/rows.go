package main

import (
	"context"
	"errors"
	"slices"
	"strings"
)

// command is one that is run in the image.
type command struct {
	name   string
	args   []string
	prints string
}

var commandsOf = []command{
	{"print(1)", []string{"python3", "-c", "print(1)"}, "1\n"},
	{"numpy", []string{"python3", "-c", "import numpy; print(numpy.arange(10).sum())"}, "45\n"},
}

// row is a way to start a command from an image. run does it once, and returns what it
// took, by what is to be added to the row's name: "" for most.
type row struct {
	name    string
	formats []string // that it is for; nil is all
	run     func(ctx context.Context, l *lab, img *image, c command) (map[string]outcome, error)
}

var rows = []row{
	{"pull", []string{"gzip"}, fullPull},
	{"snapshotter", []string{"estargz", "estargz-first"}, bySnapshotter},
	{"mount", nil, alone()},
	{"kernel", []string{"erofs", "squashfs"}, alone("--kernel-mounts")},
	{"index", []string{"gzip"}, withIndex},
	{"cluster", []string{"estargz", "gzip"}, inCluster},
	{"profile", []string{"estargz", "gzip"}, withProfile},
	{"again", []string{"estargz"}, again},
}

func (r row) suits(format string) bool { return r.formats == nil || slices.Contains(r.formats, format) }

// alone mounts the image through a node that has nothing.
func alone(flags ...string) func(context.Context, *lab, *image, command) (map[string]outcome, error) {
	return func(ctx context.Context, l *lab, img *image, c command) (map[string]outcome, error) {
		n, err := l.startNode(ctx, 0, "")
		if err != nil {
			return nil, err
		}
		defer n.end()
		o, err := n.time(ctx, img, c, flags...)
		return map[string]outcome{"": o}, err
	}
}

// time mounts the image, runs the command in it, and unmounts it.
func (n *node) time(ctx context.Context, img *image, c command, flags ...string) (o outcome, err error) {
	peers, asked := n.metric(ctx, "granary_peer_bytes_total", `"in"`), n.metric(ctx, "granary_upstream_requests_total", "")
	w := n.lab.watch()
	m, err := n.mount(ctx, img.Format, flags...)
	if err != nil {
		return o, err
	}
	w.mounted()
	err = c.run(ctx, m.dir)
	o = w.stop()
	o.peers = int64(n.metric(ctx, "granary_peer_bytes_total", `"in"`) - peers)
	o.requests = int(n.metric(ctx, "granary_upstream_requests_total", "") - asked)
	err = errors.Join(err, m.end())
	o.note = strings.TrimSpace(m.said.String())
	return o, err
}

// withIndex mounts the image through a node that has the index of its layers, which was
// made beforehand, and nothing else of it.
func withIndex(ctx context.Context, l *lab, img *image, c command) (map[string]outcome, error) {
	return l.secondRun(ctx, img, c, []string{"gzip-index"}, func(n *node) error {
		return n.granary(ctx, "ls", img.Format+":"+tag)
	})
}

// withProfile mounts the image through a node that has a profile of what an earlier run
// has read, and nothing else of the image but the indexes of its layers.
func withProfile(ctx context.Context, l *lab, img *image, c command) (map[string]outcome, error) {
	return l.secondRun(ctx, img, c, []string{"gzip-index", "profile"}, func(n *node) error {
		_, err := n.time(ctx, img, c)
		return err
	})
}

// secondRun has a node do something, takes all from it but what it has derived from
// layers, of some kinds, and measures the command then.
func (l *lab) secondRun(ctx context.Context, img *image, c command, kinds []string, first func(*node) error) (map[string]outcome, error) {
	n, err := l.startNode(ctx, 0, "")
	if err != nil {
		return nil, err
	}
	defer func() { n.end() }()
	if err := first(n); err != nil {
		return nil, err
	}
	n.stop()
	if err := keepDerived(n.data, kinds...); err != nil {
		return nil, err
	}
	second, err := l.startNode(ctx, 0, n.data)
	if err != nil {
		return nil, err
	}
	n = second
	o, err := n.time(ctx, img, c)
	return map[string]outcome{"": o}, err
}

// again mounts the image once more through a node that has all that the command reads.
func again(ctx context.Context, l *lab, img *image, c command) (map[string]outcome, error) {
	n, err := l.startNode(ctx, 0, "")
	if err != nil {
		return nil, err
	}
	defer n.end()
	if _, err := n.time(ctx, img, c); err != nil {
		return nil, err
	}
	o, err := n.time(ctx, img, c)
	return map[string]outcome{"": o}, err
}

// inCluster mounts the image through one member of a cluster, and then through another.
func inCluster(ctx context.Context, l *lab, img *image, c command) (map[string]outcome, error) {
	nodes, end, err := l.startCluster(ctx)
	defer end()
	if err != nil {
		return nil, err
	}
	all := make(map[string]outcome)
	for i, n := range nodes {
		if all[[]string{"first node", "second node"}[i]], err = n.time(ctx, img, c); err != nil {
			return nil, err
		}
	}
	return all, nil
}
