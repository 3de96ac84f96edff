package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/granary-oci/granary/simtest/containerd"
	"github.com/granary-oci/granary/simtest/lines"
	"github.com/granary-oci/granary/simtest/mounts"
	"github.com/granary-oci/granary/simtest/netns"
	"github.com/granary-oci/granary/simtest/sites"
)

// row is a way for a site that has the older version to get the newer one.
type row struct {
	name, title string
	before      state // "" needs no node
	flags       []string
	needs       []string // programs
	// get does it, through the node that the site has.
	get func(context.Context, *lab) ([]part, error)
}

// state is what a site's node has of the older version.
type state string

const (
	pulled     state = "pulled"
	read       state = "read" // through a mount
	readStargz state = "read-stargz"
)

// part is what something took until it was that far.
type part struct {
	until string
	sites.Outcome
}

var rows = []row{
	{name: "whole", title: "blob by blob", before: pulled, flags: []string{"--wan=off"}, get: pull},
	{name: "stargz", title: "eStargz, stargz-snapshotter", needs: []string{"containerd", "ctr", "containerd-stargz-grpc"}, get: bySnapshotter},
	{name: "stargz-granary", title: "eStargz, `granary mount`", before: readStargz, get: lazilyStargz},
	{name: "lazy-pulled", title: "gzip, `granary mount`, v1 pulled", before: pulled, get: lazily},
	{name: "lazy-read", title: "gzip, `granary mount`, v1 mounted and read", before: read, get: lazily},
	{name: "bytes", title: "gzip made again, `--wan=bytes`", before: pulled, flags: []string{"--wan=bytes"}, get: pull},
	{name: "time", title: "gzip made again, `--wan=time`", before: pulled, flags: []string{"--wan=time"}, get: knowingly},
}

// missing returns why a row cannot be run here.
func (r row) missing() (err error) {
	for _, name := range r.needs {
		_, not := netns.Tool(name)
		err = errors.Join(err, not)
	}
	return err
}

// run runs a row once, at a node that has what it is to have and nothing else.
func (l *lab) run(ctx context.Context, r row) (parts []part, err error) {
	if r.before == "" {
		return r.get(ctx, l)
	}
	fill := l.fillHub
	if r.before == readStargz {
		fill = l.fillHubWithStargz
	}
	if err := fill(ctx); err != nil {
		return nil, fmt.Errorf("the hub: %w", err)
	}
	if err := l.reach(ctx, r.before); err != nil {
		return nil, fmt.Errorf("the older version: %w", err)
	}
	data := filepath.Join(l.dir, "data")
	defer os.RemoveAll(data)
	if err := lines.Run(ctx, "cp -a --sparse=always "+l.state(r.before)+" "+data); err != nil {
		return nil, err
	}
	if err := l.Alone(ctx, l.site(), data, r.flags...); err != nil {
		return nil, err
	}
	defer l.site().Leave()
	return r.get(ctx, l)
}

func (l *lab) state(s state) string { return filepath.Join(l.dir, "state-"+string(s)) }

// reach has a node reach a state once, over the line while it is wide.
func (l *lab) reach(ctx context.Context, s state) (err error) {
	dir := l.state(s)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return l.widely(ctx, func() error {
		if err := l.Alone(ctx, l.site(), dir, "--wan=off"); err != nil {
			return err
		}
		defer l.site().Leave()
		switch s {
		case read:
			return l.mounted(ctx, l.older, l.older.files.readAll)
		case readStargz:
			img, err := l.inStargz(l.older)
			if err != nil {
				return err
			}
			return l.mounted(ctx, img, img.files.readAll)
		}
		return l.older.Pull(ctx, l.node().Space, sites.NodeURL)
	})
}

// forget removes a state, unless several rows begin with it.
func (l *lab) forget(s state) error {
	if s == pulled {
		return nil
	}
	return os.RemoveAll(l.state(s))
}

// widely calls do while the line is wide.
func (l *lab) widely(ctx context.Context, do func() error) error {
	if err := l.Widen(ctx, true); err != nil {
		return err
	}
	return errors.Join(do(), l.Widen(context.WithoutCancel(ctx), false))
}

func (l *lab) node() *sites.Node { return l.site().Nodes[0] }

// pull has a client pull the newer version.
func pull(ctx context.Context, l *lab) ([]part, error) {
	o, err := l.site().Measure(ctx, func(ctx context.Context) error { return l.newer.Pull(ctx, l.node().Space, sites.NodeURL) })
	return []part{{"", o}}, err
}

// knowingly is pull at a node that has found out how fast the line is.
func knowingly(ctx context.Context, l *lab) ([]part, error) {
	if err := l.other.Pull(ctx, l.node().Space, sites.NodeURL); err != nil {
		return nil, err
	}
	return pull(ctx, l)
}

// mounted mounts an image through the site's node for as long as do takes.
func (l *lab) mounted(ctx context.Context, img *image, do func(root string) error) error {
	m, err := mounts.Start(ctx, l.node().Space, l.granary, l.dir, l.log("mount"), "--node", sites.AdminURL, "--default-upstream", sites.RegistryHost, img.String())
	if err != nil {
		return err
	}
	return errors.Join(do(m.Dir), m.End())
}

// lazily mounts the newer version.
func lazily(ctx context.Context, l *lab) ([]part, error) { return l.lazily(ctx, l.newer) }

func lazilyStargz(ctx context.Context, l *lab) ([]part, error) {
	img, err := l.inStargz(l.newer)
	if err != nil {
		return nil, err
	}
	return l.lazily(ctx, img)
}

func (l *lab) lazily(ctx context.Context, img *image) (parts []part, err error) {
	return l.startAndRead(ctx, img, func(ctx context.Context, do func(root string) error) error { return l.mounted(ctx, img, do) })
}

// startAndRead measures what mounts an image and calls what then reads it.
func (l *lab) startAndRead(ctx context.Context, img *image, mount func(ctx context.Context, do func(root string) error) error) (parts []part, err error) {
	w, err := l.site().Watch(ctx)
	if err != nil {
		return nil, err
	}
	note := func(until string) error {
		o, err := w.Read(ctx)
		parts = append(parts, part{until, o})
		return err
	}
	err = mount(ctx, func(root string) error {
		if c := l.subject.starts; c != nil {
			if err := errors.Join(c.Run(ctx, root), note(", until it has started")); err != nil {
				return err
			}
		}
		if err := img.files.readAll(root); err != nil {
			return err
		}
		return note(", all files read")
	})
	return parts, err
}

// bySnapshotter has containerd's snapshotter mount both versions from the registry. All of the older one was read.
func bySnapshotter(ctx context.Context, l *lab) (parts []part, err error) {
	if err := l.OpenRegistry(ctx, true); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.OpenRegistry(context.WithoutCancel(ctx), false)) }()
	d, err := containerd.StartStargz(ctx, containerd.Config{Space: l.site().Machine(0), Dir: l.dir, Log: l.log}, sites.RegistryAddress)
	if err != nil {
		return nil, err
	}
	defer d.End()
	mount := func(ctx context.Context, img *image, do func(root string) error) error {
		root, err := d.Mount(ctx, sites.RegistryAddress+"/"+img.String())
		if err != nil {
			return err
		}
		return do(root)
	}
	was, err := l.inStargz(l.older)
	if err != nil {
		return nil, err
	}
	is, err := l.inStargz(l.newer)
	if err != nil {
		return nil, err
	}
	err = l.widely(ctx, func() error {
		if err := mount(ctx, was, was.files.readAll); err != nil {
			return err
		}
		return l.site().Quiet(ctx, l.quiet)
	})
	if err != nil {
		return nil, fmt.Errorf("the older version: %w", err)
	}
	return l.startAndRead(ctx, is, func(ctx context.Context, do func(root string) error) error { return mount(ctx, is, do) })
}
