// Package demo makes what a demonstration of a node needs without a network: a
// real image of several layers, built from the Go installation at hand, and a
// registry that serves it.
package demo

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image whose blobs are files in a directory, each named for its
// digest in hexadecimal.
type Image struct {
	Dir      string
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Layers   []ocispec.Descriptor
}

// Size returns the bytes of all blobs, the manifest not counted.
func (i *Image) Size() int64 {
	n := i.Config.Size
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// part is the content of one layer: the folders of a Go installation that it
// holds, and how it is compressed.
type part struct {
	folders   []string
	mediaType string
}

// parts are cut as an image of Go would be: what changes together is one layer.
// The three compressions that images have are all there.
var parts = []part{
	{[]string{"VERSION", "LICENSE", "lib", "misc", "api"}, ocispec.MediaTypeImageLayerGzip},
	{[]string{"src"}, ocispec.MediaTypeImageLayerGzip},
	{[]string{"pkg"}, ocispec.MediaTypeImageLayerZstd},
	{[]string{"bin"}, ocispec.MediaTypeImageLayer},
}

// Build makes an image of the Go installation in goroot in the directory dir.
// The same installation gives the same image. Run, it prints Go's version.
func Build(dir, goroot string) (*Image, error) {
	img := &Image{Dir: dir}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("demo image: %w", err)
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers"},
		Config: ocispec.ImageConfig{
			Env:        []string{"PATH=/usr/local/go/bin:/usr/bin:/bin", "GOTOOLCHAIN=local", "HOME=/"},
			Entrypoint: []string{"/usr/local/go/bin/go"},
			Cmd:        []string{"version"},
		},
	}
	for _, p := range parts {
		desc, diffID, err := img.addLayer(p, goroot)
		if err != nil {
			return nil, fmt.Errorf("demo image: layer of %s: %w", strings.Join(p.folders, ", "), err)
		}
		img.Layers = append(img.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	}
	var err error
	if img.Config, err = img.addJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return nil, fmt.Errorf("demo image: config: %w", err)
	}
	img.Manifest, err = img.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    img.Config,
		Layers:    img.Layers,
	})
	if err != nil {
		return nil, fmt.Errorf("demo image: manifest: %w", err)
	}
	return img, nil
}

// Path returns the file of a blob.
func (i *Image) Path(d digest.Digest) string { return filepath.Join(i.Dir, d.Encoded()) }

func (i *Image) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return i.add(mediaType, func(w io.Writer) error { _, err := io.Copy(w, bytes.NewReader(p)); return err })
}

// addLayer writes one layer and returns its descriptor and the digest of its
// uncompressed tar.
func (i *Image) addLayer(p part, goroot string) (desc ocispec.Descriptor, diffID digest.Digest, err error) {
	diff := digest.Canonical.Digester()
	desc, err = i.add(p.mediaType, func(w io.Writer) error {
		compressed, err := compressor(p.mediaType, w)
		if err != nil {
			return err
		}
		t := tar.NewWriter(io.MultiWriter(compressed, diff.Hash()))
		for _, folder := range p.folders {
			if err := addTree(t, goroot, folder); err != nil {
				return err
			}
		}
		return errors.Join(t.Close(), compressed.Close())
	})
	return desc, diff.Digest(), err
}

func compressor(mediaType string, w io.Writer) (io.WriteCloser, error) {
	switch mediaType {
	case ocispec.MediaTypeImageLayerGzip:
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	case ocispec.MediaTypeImageLayerZstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	default:
		return nopCloser{w}, nil
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// add writes a blob and names it for its digest.
func (i *Image) add(mediaType string, write func(io.Writer) error) (ocispec.Descriptor, error) {
	f, err := os.CreateTemp(i.Dir, ".new-*")
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
	return desc, os.Rename(f.Name(), i.Path(desc.Digest))
}

// addTree adds a file or folder of the Go installation to a layer. Times and
// owners are left out, so that the layer depends on nothing but the content.
func addTree(t *tar.Writer, goroot, folder string) error {
	return filepath.WalkDir(filepath.Join(goroot, folder), func(file string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // not every installation has every folder
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() && !info.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(goroot, file)
		if err != nil {
			return err
		}
		h := &tar.Header{
			Name:     path.Join("usr/local/go", filepath.ToSlash(rel)),
			Mode:     0o644 | int64(info.Mode().Perm()&0o111),
			Size:     info.Size(),
			ModTime:  time.Unix(0, 0),
			Typeflag: tar.TypeReg,
		}
		if info.IsDir() {
			h.Typeflag, h.Size, h.Mode, h.Name = tar.TypeDir, 0, 0o755, h.Name+"/"
		}
		if err := t.WriteHeader(h); err != nil || info.IsDir() {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(t, f)
		return err
	})
}
