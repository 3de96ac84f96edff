package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/granary-oci/granary/simtest/images"
	"github.com/granary-oci/granary/simtest/mounts"
)

// version is one of two of an image. Its files are as old as that at the most: seconds since 1970.
type version struct {
	tag   string
	epoch int
}

var older, newer = version{"v1", 1790000000}, version{"v2", 1795900000}

func (v version) newer() bool { return v == newer }

// subject is an image, of which there are two versions.
type subject struct {
	name, title string
	// layers returns the layers of a version as tars in a folder, the lowest first, which are made once.
	layers func(ctx context.Context, folder string, v version) ([]string, error)
	starts *mounts.Command // as the image's program does; nil for none
}

var subjects = []subject{
	{"debian", "Debian, security updates", debianLayers, &mounts.Command{Args: []string{"python3", "-c", "print(1)"}, Prints: "1\n"}},
	{"npm", "npm application, next 14.1.4 to 14.2.5", npmLayers, &mounts.Command{Args: []string{"node", "-e", "console.log(typeof require('/app/node_modules/next'))"}, Prints: "function\n"}},
	{"model", "model of 1 GiB, 5 % changed in place", func(_ context.Context, folder string, v version) ([]string, error) {
		return modelLayers(folder, v, 1<<30)
	}, nil},
}

// installed is in an image of services, of which many have security updates.
const installed = "apache2,ca-certificates,curl,git,nodejs,openssh-client,perl,postgresql-client-15,procps,python3"

// debianLayers are a Debian and what is installed in it, as by a Dockerfile that is built again with the same lines. Files of packages
// are as old as they are there; what installing them writes is of the day.
func debianLayers(ctx context.Context, folder string, v version) ([]string, error) {
	base, programs := filepath.Join(folder, "debian-"+v.tag+"-base"), filepath.Join(folder, "debian-"+v.tag+"-programs")
	err := images.Once(base+".tar", func(to string) error {
		all, err := debianSystem(ctx, base, "", v)
		if err != nil {
			return err
		}
		return images.Difference("", all, to)
	})
	if err != nil {
		return nil, err
	}
	return []string{base + ".tar", programs + ".tar"}, images.Once(programs+".tar", func(to string) error {
		below, err := debianSystem(ctx, base, "", v)
		if err != nil {
			return err
		}
		all, err := debianSystem(ctx, programs, installed, v)
		if err != nil {
			return err
		}
		return images.Difference(below, all, to)
	})
}

// debianSystem returns all that there is when a layer has been laid over those below it.
func debianSystem(ctx context.Context, layer, packages string, v version) (string, error) {
	system := layer + "-system.tar"
	return system, images.Once(system, func(to string) error {
		return images.Bootstrap(ctx, to, images.System{Packages: packages, Epoch: v.epoch, Security: v.newer()})
	})
}

// modelLayers are a file of random bytes, as weights are to a compressor. In the newer version 64 places of it
// have changed, far apart from each other, 5 % in all.
func modelLayers(folder string, v version, size int64) ([]string, error) {
	layer := filepath.Join(folder, fmt.Sprintf("model-%d-%s.tar", size, v.tag))
	return []string{layer}, images.Once(layer, func(to string) error { return writeModel(to, v, size) })
}

func writeModel(to string, v version, size int64) error {
	const places = 64
	all, other := rand.NewChaCha8([32]byte{'a'}), rand.NewChaCha8([32]byte{'b'})
	return writeTar(to, v, func(w *tree) error {
		part := make([]byte, size/places)
		return w.file("model/weights.safetensors", 0o644, int64(len(part))*places, func(f io.Writer) error {
			for range places {
				_, _ = all.Read(part)
				if v.newer() {
					_, _ = other.Read(part[len(part)/3:][:len(part)/20])
				}
				if _, err := f.Write(part); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// npmLayers are the application's over a Debian that stays the same.
func npmLayers(ctx context.Context, folder string, v version) ([]string, error) {
	layers, err := debianLayers(ctx, folder, older)
	if err != nil {
		return nil, err
	}
	layer := filepath.Join(folder, "npm-"+v.tag+".tar")
	return append(layers, layer), images.Once(layer, func(to string) error { return writeNPM(ctx, to, v) })
}

// writeNPM installs what an application names, as of a day, so that it is always the same. Its files are of the day
// on which they are installed.
func writeNPM(ctx context.Context, to string, v version) error {
	wanted := []string{"--before=2024-05-15", "next@14.1.4", "react@18.2.0", "react-dom@18.2.0", "typescript@5.4.5"}
	if v.newer() {
		wanted = []string{"--before=2025-01-01", "next@14.2.5", "react@18.3.1", "react-dom@18.3.1", "typescript@5.5.4"}
	}
	dir, err := os.MkdirTemp("", "updates-npm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(os.Stderr, "npm install", wanted)
	if _, err := output(ctx, dir, append([]string{"npm", "install", "--silent", "--ignore-scripts"}, wanted...)...); err != nil {
		return err
	}
	return writeTar(to, v, func(w *tree) error { return w.add(dir, "app") })
}
