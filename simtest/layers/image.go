package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is one whose blobs are in the lab's folder, in which it has a tag.
type image struct {
	name     string
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	layers   []ocispec.Descriptor
}

// size returns the bytes of all layers.
func (i *image) size() (n int64) {
	for _, d := range i.layers {
		n += d.Size
	}
	return n
}

// top returns the last layer, which has the files that are read apart.
func (i *image) top() ocispec.Descriptor { return i.layers[len(i.layers)-1] }

// blobs is an OCI image layout (image-spec, image-layout.md).
func (l *lab) blobs() string { return filepath.Join(l.dir, "layout") }

func (l *lab) path(d digest.Digest) string {
	return filepath.Join(l.blobs(), "blobs/sha256", d.Encoded())
}

// build makes the image of a format.
func (l *lab) build(f format) (*image, error) {
	img := &image{name: f.name}
	var diffIDs []digest.Digest
	for _, s := range l.sources {
		from := s.tar
		if f.sparse && s.sparse != "" {
			from = s.sparse
		}
		layer, err := l.layer(f, from)
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", f.name, from, err)
		}
		img.layers, diffIDs = append(img.layers, layer.Desc), append(diffIDs, layer.DiffID)
	}
	return img, l.finish(img, diffIDs)
}

// madeLayer is a layer that has been written.
type madeLayer struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest
}

// layer writes a layer in a format, or takes it from where it is kept.
func (l *lab) layer(f format, from string) (made madeLayer, err error) {
	source, err := digestOf(from)
	if err != nil {
		return made, err
	}
	note := filepath.Join(l.kept, f.name+"-"+source.Encoded()+".json")
	if p, err := os.ReadFile(note); l.kept != "" && err == nil && json.Unmarshal(p, &made) == nil {
		return made, l.link(filepath.Join(l.kept, made.Desc.Digest.Encoded()), l.path(made.Desc.Digest))
	}
	var said written
	made.Desc, err = l.add(f.mediaType, func(w io.Writer) (err error) {
		said, err = f.write(l, from, w)
		return err
	})
	if err != nil {
		return made, err
	}
	made.Desc.Annotations, made.DiffID = said.annotations, said.diffID
	if made.DiffID == "" {
		made.DiffID = source
	}
	if l.kept == "" {
		return made, nil
	}
	p, err := json.Marshal(made)
	return made, errors.Join(err, l.link(l.path(made.Desc.Digest), filepath.Join(l.kept, made.Desc.Digest.Encoded())), os.WriteFile(note, p, 0o644))
}

// link gives a file a further name.
func (l *lab) link(from, to string) error {
	err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.Link(from, to))
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return err
}

// finish adds an image's config and manifest.
func (l *lab) finish(img *image, diffIDs []digest.Digest) (err error) {
	img.config, err = l.addJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	if err != nil {
		return err
	}
	img.manifest, err = l.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: img.config, Layers: img.layers,
	})
	return err
}

func (l *lab) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	return l.add(mediaType, func(w io.Writer) error { return json.NewEncoder(w).Encode(v) })
}

func (l *lab) addBytes(mediaType string, p []byte) (ocispec.Descriptor, error) {
	return l.add(mediaType, func(w io.Writer) error { _, err := w.Write(p); return err })
}

// add writes a blob.
func (l *lab) add(mediaType string, write func(io.Writer) error) (desc ocispec.Descriptor, err error) {
	if err := os.MkdirAll(filepath.Join(l.blobs(), "blobs/sha256"), 0o755); err != nil {
		return desc, err
	}
	f, err := os.CreateTemp(l.dir, "blob-*")
	if err != nil {
		return desc, err
	}
	defer os.Remove(f.Name())
	sum := digest.Canonical.Digester()
	err = write(io.MultiWriter(f, sum.Hash()))
	size, serr := f.Seek(0, io.SeekCurrent)
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return desc, err
	}
	desc = ocispec.Descriptor{MediaType: mediaType, Digest: sum.Digest(), Size: size}
	return desc, os.Rename(f.Name(), l.path(desc.Digest))
}

func digestOf(name string) (digest.Digest, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return digest.FromReader(f)
}
