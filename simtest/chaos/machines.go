package main

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/netns"
)

// down takes a node's process away and returns what brings it back. Meanwhile no other fault touches it.
func (l *lab) down(e event, take func(*node)) func(context.Context) error {
	n := l.nodes[e.Node]
	n.busy.Lock()
	end := l.history.begin(e, away)
	take(n)
	return func(ctx context.Context) error {
		defer n.busy.Unlock()
		defer end()
		return n.start(ctx)
	}
}

// kill ends a process without a word. What it had not committed is lost.
func (l *lab) kill(_ context.Context, e event) (func(context.Context) error, error) {
	return l.down(e, func(n *node) {
		n.Kill()
		l.history.lose(e.Node, committed)
	}), nil
}

// restart ends a process as an operator does, and starts it again.
func (l *lab) restart(_ context.Context, e event) (func(context.Context) error, error) {
	return l.down(e, (*node).end), nil
}

// freeze stops a process, whose connections stay.
func (l *lab) freeze(_ context.Context, e event) (func(context.Context) error, error) {
	n := l.nodes[e.Node]
	n.busy.Lock()
	end := l.history.begin(e, away)
	n.Signal(syscall.SIGSTOP)
	return func(context.Context) error {
		defer n.busy.Unlock()
		n.Signal(syscall.SIGCONT)
		end()
		return nil
	}, nil
}

// corruptStopped changes files of a node that is not running.
func (l *lab) corruptStopped(_ context.Context, e event) (func(context.Context) error, error) {
	var err error
	undo := l.down(e, func(n *node) { n.end(); err = l.corrupt(n, e) })
	return undo, err
}

// corruptRunning changes files of a node that hashes what it reads each time.
func (l *lab) corruptRunning(_ context.Context, e event) (func(context.Context) error, error) {
	n := l.nodes[e.Node]
	n.busy.Lock()
	defer n.busy.Unlock()
	end := l.history.begin(e, other)
	err := l.corrupt(n, e)
	l.history.ruin(e.Node)
	return func(context.Context) error { end(); return nil }, err
}

// corrupt changes a few bytes in about half of the files in which a node has blobs. If others then say that it has given them wrong
// bytes, it is no lie.
func (l *lab) corrupt(n *node, e event) error {
	l.mu.Lock()
	l.culprits[n.id] = "its files were corrupted"
	l.mu.Unlock()
	defer l.history.lose(n.index, forever)
	rng, files := rand.New(rand.NewPCG(e.Seed, 0)), 0
	err := filepath.WalkDir(filepath.Join(n.dir, "store", "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || rng.IntN(2) == 0 {
			return ignoreMissing(err)
		}
		files++
		return ignoreMissing(scratch(path, rng))
	})
	l.log("        %d files of node %d were corrupted", files, n.index+1)
	return err
}

// scratch changes 1 to 4 bytes of a file.
func scratch(path string, rng *rand.Rand) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	for range 1 + rng.IntN(4) {
		at, was := rng.Int64N(info.Size()), make([]byte, 1)
		if _, err := f.ReadAt(was, at); err != nil {
			return err
		}
		was[0] ^= byte(1 + rng.IntN(255))
		if _, err := f.WriteAt(was, at); err != nil {
			return err
		}
	}
	return nil
}

// ignoreMissing is for files that a node may remove meanwhile.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// fillDisk leaves a node's disk without room, also when the node makes some.
func (l *lab) fillDisk(_ context.Context, e event) (func(context.Context) error, error) {
	n := l.nodes[e.Node]
	end := l.history.begin(e, full)
	name := filepath.Join(n.dir, "ballast")
	f, err := os.Create(name)
	if err != nil {
		end()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	filled := make(chan struct{})
	go func() {
		defer close(filled)
		for size := int64(0); netns.Pause(ctx, 100*time.Millisecond) == nil; {
			var is unix.Statfs_t
			if unix.Statfs(n.dir, &is) == nil && is.Bavail > 0 && unix.Fallocate(int(f.Fd()), 0, size, int64(is.Bavail)*is.Bsize) == nil {
				size += int64(is.Bavail) * is.Bsize
			}
		}
	}()
	return func(context.Context) error {
		defer end()
		cancel()
		<-filled
		return errors.Join(f.Close(), os.Remove(name))
	}, nil
}
