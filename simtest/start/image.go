package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tag is what all images are called.
const tag = "v1"

// image is one that is in the registry, under the name of its format.
type image struct {
	Format   string
	Manifest ocispec.Descriptor
	Size     int64 // bytes of all layers
}

// ensure makes the image of a format and puts it into the registry, unless an earlier run
// has, and left a note of it. Of formats that say so, what the commands read comes first.
func (r *registry) ensure(ctx context.Context, f format, note string, layers []string, commands []command) (*image, error) {
	img := new(image)
	if p, err := os.ReadFile(note); err == nil && json.Unmarshal(p, img) == nil && r.holds(ctx, img) {
		return img, nil
	}
	fmt.Fprintln(os.Stderr, "make the image of", f.name)
	var first []string
	if f.ordered {
		var err error
		if first, err = filesOf(ctx, layers, commands); err != nil {
			return nil, err
		}
	}
	img, err := r.make(ctx, f, layers, first, commands)
	if err != nil {
		return nil, err
	}
	p, err := json.Marshal(img)
	return img, errors.Join(err, os.WriteFile(note, p, 0o644))
}

// make writes the image of a format, and puts it into the registry.
func (r *registry) make(ctx context.Context, f format, layers, first []string, commands []command) (*image, error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
	config.Config.Cmd = commands[0].Args[:1] // as images of a program say it
	img := &image{Format: f.name}
	for _, from := range layers {
		desc, diffID, err := r.addLayer(ctx, f, from, first)
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", f.name, filepath.Base(from), err)
		}
		m.Layers, config.RootFS.DiffIDs = append(m.Layers, desc), append(config.RootFS.DiffIDs, diffID)
		img.Size += desc.Size
	}
	p, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(p), Size: int64(len(p))}
	if err := r.pushBlob(ctx, f.name, m.Config, bytes.NewReader(p)); err != nil {
		return nil, err
	}
	if p, err = json.Marshal(m); err != nil {
		return nil, err
	}
	img.Manifest = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
	return img, r.pushManifest(ctx, f.name, m.MediaType, p)
}

// addLayer writes a layer, and puts it into the registry.
func (r *registry) addLayer(ctx context.Context, f format, from string, first []string) (desc ocispec.Descriptor, diffID digest.Digest, err error) {
	blob, err := os.CreateTemp(r.work, "layer-*")
	if err != nil {
		return desc, "", err
	}
	defer os.Remove(blob.Name())
	defer blob.Close()
	sum := digest.Canonical.Digester()
	written, err := f.write(from, io.MultiWriter(blob, sum.Hash()), first)
	if err != nil {
		return desc, "", err
	}
	size, err := blob.Seek(0, io.SeekCurrent)
	if err != nil {
		return desc, "", err
	}
	if _, err := blob.Seek(0, io.SeekStart); err != nil {
		return desc, "", err
	}
	desc = ocispec.Descriptor{MediaType: f.mediaType, Digest: sum.Digest(), Size: size, Annotations: written.annotations}
	if diffID = written.diffID; diffID == "" {
		if diffID, err = digestOf(from); err != nil {
			return desc, "", err
		}
	}
	return desc, diffID, r.pushBlob(ctx, f.name, desc, blob)
}

func digestOf(name string) (digest.Digest, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return digest.FromReader(f)
}
