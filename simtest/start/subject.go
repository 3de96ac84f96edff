package main

import (
	"context"
	"path/filepath"
)

// command is one that is run in the image.
type command struct {
	name   string
	args   []string
	prints string
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
	{"print(1)", []string{"python3", "-c", "print(1)"}, "1\n"},
	{"numpy", []string{"python3", "-c", "import numpy; print(numpy.arange(10).sum())"}, "45\n"},
}}

// small is a minimal Debian, made by simtest/e2e/install.sh: to try this program.
var small = subject{"small", smallLayers, []command{
	{"sh", []string{"sh", "-c", "echo $((6*7))"}, "42\n"},
	{"awk", []string{"awk", "BEGIN { print 6*7 }"}, "42\n"},
}}

func smallLayers(context.Context, string) ([]string, error) {
	return []string{filepath.Join(tools(), "debian.tar")}, nil
}
