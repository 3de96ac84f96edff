package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/p2p/decide"
)

// recipe says how an image is made, without a network and the same each time on
// the same Go installation.
type recipe struct {
	name  string
	size  int64 // of all blobs, within a few KiB
	seed  byte  // of the bytes that are not of Go; another seed shares no blob
	plain bool  // one layer that is not compressed, of seeded bytes alone
}

var (
	image190 = recipe{name: "image190", size: 190e6, seed: 1}
	blob1G   = recipe{name: "blob1g", size: 1 << 30, seed: 2, plain: true}
)

// small is the k-th of the small images of the faults.
func small(k int) recipe {
	return recipe{name: fmt.Sprintf("small%d", k), size: 48e6, seed: byte(16 + k)}
}

// image is what a client is to get.
type image struct {
	Name     string // of the repository and the recipe
	Manifest []byte
	Digest   digest.Digest // of the manifest
	Blobs    []ocispec.Descriptor
}

// size returns the bytes of all blobs and the manifest.
func (i *image) size() int64 {
	n := int64(len(i.Manifest))
	for _, b := range i.Blobs {
		n += b.Size
	}
	return n
}

// requests returns how many requests the registry may get for the image, when it
// is cold, from a cluster of so many members: its stripes and five per blob.
func (i *image) requests(members int) int {
	n := 0
	for _, b := range i.Blobs {
		stripe := decide.StripeSize(b.Size, members)
		n += int((b.Size+stripe-1)/stripe) + 5
	}
	return n
}

// build makes the image and hands each blob, as a file, to put.
func (r recipe) build(dir string, put func(ocispec.Descriptor, string) error) (*image, error) {
	b := &builder{recipe: r, dir: dir, put: put, image: &image{Name: r.name}}
	b.config = ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers"},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/usr/local/go/bin/go"}, Cmd: []string{"version"}},
	}
	if err := b.layers(); err != nil {
		return nil, fmt.Errorf("image %s: %w", r.name, err)
	}
	p, err := json.Marshal(b.config)
	if err != nil {
		return nil, err
	}
	config, err := b.blob(ocispec.MediaTypeImageConfig, func(w io.Writer) error { _, err := w.Write(p); return err })
	if err != nil {
		return nil, fmt.Errorf("image %s: config: %w", r.name, err)
	}
	b.image.Manifest, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: b.image.Blobs,
	})
	b.image.Digest = digest.FromBytes(b.image.Manifest)
	b.image.Blobs = append(b.image.Blobs, config)
	return b.image, err
}

type builder struct {
	recipe
	dir    string
	put    func(ocispec.Descriptor, string) error
	image  *image
	config ocispec.Image
}

// layers makes two layers of a Go installation, each up to a third of the size
// and no more than there is, and fills up with two of seeded bytes.
func (b *builder) layers() error {
	if b.plain {
		return b.layer(ocispec.MediaTypeImageLayer, func(t *tar.Writer, _ func() int64) error { return b.noise(t, "0", b.size) })
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	third := b.size / 3
	for _, folders := range [][]string{{"src"}, {"pkg", "bin"}} {
		err := b.layer(ocispec.MediaTypeImageLayerGzip, func(t *tar.Writer, written func() int64) error {
			if err := b.noise(t, "seed", 1<<10); err != nil {
				return err
			}
			return addTrees(t, strings.TrimSpace(string(goroot)), folders, third/4, func() bool { return written() >= third })
		})
		if err != nil {
			return err
		}
	}
	rest := b.size - b.image.size()
	for _, part := range []struct {
		name string
		size int64
	}{{"1", rest / 2}, {"2", rest - rest/2}} {
		err := b.layer(ocispec.MediaTypeImageLayerGzip, func(t *tar.Writer, _ func() int64) error { return b.noise(t, part.name, part.size) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) layer(mediaType string, fill func(t *tar.Writer, written func() int64) error) error {
	diff := digest.Canonical.Digester()
	desc, err := b.blob(mediaType, func(w io.Writer) error {
		counted := &counter{w: w}
		var compressed io.WriteCloser = counted
		if mediaType == ocispec.MediaTypeImageLayerGzip {
			compressed, _ = gzip.NewWriterLevel(counted, gzip.BestSpeed)
		}
		t := tar.NewWriter(io.MultiWriter(compressed, diff.Hash()))
		err := fill(t, func() int64 { return counted.n })
		return errors.Join(err, t.Close(), compressed.Close())
	})
	b.image.Blobs = append(b.image.Blobs, desc)
	b.config.RootFS.DiffIDs = append(b.config.RootFS.DiffIDs, diff.Digest())
	return err
}

// blob writes a blob to a file for as long as it is put.
func (b *builder) blob(mediaType string, write func(io.Writer) error) (ocispec.Descriptor, error) {
	f, err := os.CreateTemp(b.dir, "blob-*")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer os.Remove(f.Name())
	sum := digest.Canonical.Digester()
	err = write(io.MultiWriter(f, sum.Hash()))
	size, serr := f.Seek(0, io.SeekCurrent)
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: sum.Digest(), Size: size}
	return desc, b.put(desc, f.Name())
}

// noise adds a file of seeded bytes, which nothing compresses.
func (b *builder) noise(t *tar.Writer, name string, size int64) error {
	seed := [32]byte{0: b.seed}
	copy(seed[1:], name)
	h := &tar.Header{Name: "noise/" + name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.CopyN(t, rand.NewChaCha8(seed), size)
	return err
}

// addTrees adds files of the Go installation, none larger than largest, until
// there is enough.
func addTrees(t *tar.Writer, goroot string, folders []string, largest int64, enough func() bool) error {
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join(goroot, folder), func(file string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if enough() {
				return fs.SkipAll
			}
			if !e.Type().IsRegular() {
				return nil
			}
			return addFile(t, goroot, file, largest)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func addFile(t *tar.Writer, goroot, file string, largest int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() > largest {
		return err
	}
	rel, err := filepath.Rel(goroot, file)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: path.Join("usr/local/go", filepath.ToSlash(rel)), Mode: 0o644 | int64(info.Mode().Perm()&0o111),
		Size: info.Size(), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *counter) Close() error { return nil }
