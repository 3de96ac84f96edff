package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/images"
)

const epoch = 1750000000 // seconds since 1970, of the image

// steps are the systems that the image's layers are the differences of: what many images
// of a program in Python are made of. Each has the packages of those below it.
var steps = []struct{ name, packages string }{
	{"debian", ""},
	{"tools", "ca-certificates,curl,git,openssh-client,procps"},
	{"python", "python3"},
	{"numpy", "python3-numpy"},
}

// recipe names what the image is made of, in names of files.
func recipe() string { return digest.FromString(fmt.Sprint(steps)).Encoded()[:8] }

// pythonLayers returns the layers of the image that is measured. They are made once.
func pythonLayers(ctx context.Context, folder string) (layers []string, err error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	below, packages := "", ""
	for _, s := range steps {
		packages = strings.Trim(packages+","+s.packages, ",")
		system, layer := filepath.Join(folder, s.name+"-system.tar"), filepath.Join(folder, s.name+".tar")
		if err := images.Once(system, func(to string) error {
			return images.Bootstrap(ctx, to, images.System{Packages: packages, Epoch: epoch})
		}); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		if err := images.Once(layer, func(to string) error { return images.Difference(below, system, to) }); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		layers, below = append(layers, layer), system
	}
	return layers, nil
}
