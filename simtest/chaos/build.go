package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/granary-oci/granary/simtest/netns"
)

// build makes the two binaries, of this module with two versions. With -previous the first is that one: a file, or what a
// commit of this repository builds.
func (l *lab) build(ctx context.Context) error {
	l.builds, l.versions = []string{l.file("granary-1"), l.file("granary-2")}, []string{"chaos-1", "chaos-2"}
	if err := buildAs(ctx, "", l.builds[1], l.versions[1]); err != nil {
		return err
	}
	if info, err := os.Stat(l.previous); err == nil && info.Mode().IsRegular() {
		l.builds[0], l.versions[0] = l.previous, "" // whatever it says of itself
		return nil
	}
	dir := ""
	if l.previous != "" {
		dir = l.file("previous")
		if err := checkOut(ctx, l.previous, dir); err != nil {
			return err
		}
	}
	return buildAs(ctx, dir, l.builds[0], l.versions[0])
}

func buildAs(ctx context.Context, dir, to, version string) error {
	return netns.BuildFrom(ctx, dir, to, "-buildvcs=false", "-ldflags", "-X github.com/granary-oci/granary/cmd/granary/node.release="+version)
}

// checkOut puts the files of a commit into a new directory. The repository is left as it is.
func checkOut(ctx context.Context, commit, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	top, err := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return fmt.Errorf("-previous %s is no file, and this is no repository: %w", commit, err)
	}
	archive := exec.CommandContext(ctx, "git", "archive", commit)
	archive.Dir = string(top[:len(top)-1])
	unpack := exec.CommandContext(ctx, "tar", "x", "-C", dir)
	if unpack.Stdin, err = archive.StdoutPipe(); err != nil {
		return err
	}
	archive.Stderr, unpack.Stderr = os.Stderr, os.Stderr
	if err := archive.Start(); err != nil {
		return err
	}
	if err := unpack.Run(); err != nil {
		return fmt.Errorf("-previous %s: %w", commit, err)
	}
	return archive.Wait()
}
