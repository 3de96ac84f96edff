package main

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"

	"github.com/granary-oci/granary/simtest/netns"
)

// row is a way to start a command from an image.
type row struct {
	name    string
	formats []string // that it is for; nil is all
	// missing says what it takes that is not there; nil for nothing.
	missing func(l *lab) string
	// run does it once.
	run func(ctx context.Context, l *lab, img *image, c command) ([]measured, error)
}

// measured is what a part of a row took; most have one part, without a name.
type measured struct {
	part string
	outcome
}

var rows = []row{
	{name: "pull", formats: []string{"gzip"}, run: fullPull},
	{name: "snapshotter", formats: []string{"estargz", "estargz-first"}, missing: noSnapshotter, run: bySnapshotter},
	{name: "mount", run: alone()},
	{name: "kernel", formats: []string{"erofs", "squashfs"}, missing: noKernelMounts, run: alone("--kernel-mounts")},
	{name: "index", formats: []string{"gzip"}, run: withIndex},
	{name: "cluster", formats: []string{"estargz", "gzip"}, run: inCluster},
	{name: "profile", formats: []string{"estargz", "gzip"}, run: withProfile},
	{name: "again", formats: []string{"estargz"}, run: again},
}

func (r row) suits(format string) bool { return r.formats == nil || slices.Contains(r.formats, format) }

func noSnapshotter(*lab) string {
	if _, err := netns.Tool("containerd-stargz-grpc"); err != nil {
		return err.Error()
	}
	return ""
}

func noKernelMounts(l *lab) string {
	if out, _ := exec.Command(l.granary, "mount", "--help").CombinedOutput(); !strings.Contains(string(out), "--kernel-mounts") {
		return "this granary has no --kernel-mounts"
	}
	return ""
}

// alone mounts the image through a node that has nothing.
func alone(flags ...string) func(context.Context, *lab, *image, command) ([]measured, error) {
	return func(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
		n, err := l.startNode(ctx, 0, "")
		if err != nil {
			return nil, err
		}
		defer n.end()
		o, err := n.time(ctx, img, c, flags...)
		return []measured{{outcome: o}}, err
	}
}

// time mounts the image, runs the command in it, and unmounts it.
func (n *node) time(ctx context.Context, img *image, c command, flags ...string) (o outcome, err error) {
	peers, asked := n.metric(ctx, "granary_peer_bytes_total", `"in"`), n.metric(ctx, "granary_upstream_requests_total", "")
	cpu := n.CPU()
	w := n.lab.watch()
	m, err := n.mount(ctx, img.Format, flags...)
	if err != nil {
		return o, err
	}
	w.mounted()
	err = c.Run(ctx, m.Dir)
	o = w.stop()
	o.cpu = n.CPU() - cpu
	o.peers = int64(n.metric(ctx, "granary_peer_bytes_total", `"in"`) - peers)
	o.requests = int(n.metric(ctx, "granary_upstream_requests_total", "") - asked)
	err = errors.Join(err, m.End())
	o.cpu += (m.ProcessState.UserTime() + m.ProcessState.SystemTime()).Seconds()
	o.note = m.Said()
	return o, err
}

// withIndex mounts the image through a node that has the index of its layers, which was
// made beforehand, and nothing else of it.
func withIndex(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
	return l.secondRun(ctx, img, c, []string{"gzip-index"}, func(n *node) error {
		return n.granary(ctx, "ls", img.Format+":"+tag)
	})
}

// withProfile mounts the image through a node that has a profile of what an earlier run
// has read, and nothing else of the image but the indexes of its layers.
func withProfile(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
	return l.secondRun(ctx, img, c, []string{"gzip-index", "profile"}, func(n *node) error {
		_, err := n.time(ctx, img, c)
		return err
	})
}

// secondRun has a node do something, takes all from it but what it has derived from
// layers, of some kinds, and measures the command then.
func (l *lab) secondRun(ctx context.Context, img *image, c command, kinds []string, first func(*node) error) ([]measured, error) {
	n, err := l.startNode(ctx, 0, "")
	if err != nil {
		return nil, err
	}
	defer func() { n.end() }()
	if err := first(n); err != nil {
		return nil, err
	}
	n.Stop()
	if err := keepDerived(n.data, kinds...); err != nil {
		return nil, err
	}
	second, err := l.startNode(ctx, 0, n.data)
	if err != nil {
		return nil, err
	}
	n = second
	o, err := n.time(ctx, img, c)
	return []measured{{outcome: o}}, err
}

// again mounts the image once more through a node that has all that the command reads.
func again(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
	n, err := l.startNode(ctx, 0, "")
	if err != nil {
		return nil, err
	}
	defer n.end()
	if _, err := n.time(ctx, img, c); err != nil {
		return nil, err
	}
	o, err := n.time(ctx, img, c)
	return []measured{{outcome: o}}, err
}

// inCluster mounts the image through one member of a cluster, and then through another.
func inCluster(ctx context.Context, l *lab, img *image, c command) ([]measured, error) {
	nodes, end, err := l.startCluster(ctx)
	defer end()
	if err != nil {
		return nil, err
	}
	var all []measured
	for i, n := range nodes {
		o, err := n.time(ctx, img, c)
		if err != nil {
			return nil, err
		}
		all = append(all, measured{[]string{"first node", "second node"}[i], o})
	}
	return all, nil
}
