package main

import (
	"context"
	"path/filepath"

	"github.com/granary-oci/granary/simtest/mounts"
	"github.com/granary-oci/granary/simtest/netns"
)

// command is one that is run in the image.
type command struct {
	name string
	mounts.Command
}

// subject is an image, and what is run in it.
type subject struct {
	name string // in names of files
	// layers returns the image's layers as tars, the lowest first, which may be kept in a
	// folder.
	layers   func(ctx context.Context, folder string) ([]string, error)
	commands []command
}

// python is what is measured.
var python = subject{"python-" + recipe(), pythonLayers, []command{
	{"print(1)", mounts.Command{Args: []string{"python3", "-c", "print(1)"}, Prints: "1\n"}},
	{"numpy", mounts.Command{Args: []string{"python3", "-c", "import numpy; print(numpy.arange(10).sum())"}, Prints: "45\n"}},
}}

// small is a minimal Debian, made by simtest/e2e/install.sh: to try this program.
var small = subject{"small", smallLayers, []command{
	{"sh", mounts.Command{Args: []string{"sh", "-c", "echo $((6*7))"}, Prints: "42\n"}},
	{"awk", mounts.Command{Args: []string{"awk", "BEGIN { print 6*7 }"}, Prints: "42\n"}},
}}

func smallLayers(context.Context, string) ([]string, error) {
	return []string{filepath.Join(netns.Tools(), "debian.tar")}, nil
}
