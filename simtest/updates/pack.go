package main

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/images"
	"github.com/granary-oci/granary/simtest/sites"
)

// form is one that layers are packed in.
type form struct {
	suffix string // of files
	// pack packs a tar, and returns what is said of the layer, and the digest of what it unpacks to.
	pack func(tar string, to io.Writer) (annotations map[string]string, diffID digest.Digest, err error)
}

var (
	ordinary = form{".gz", packGzip}
	stargz   = form{".stargz", packStargz}
)

// packGzip packs as BuildKit, crane and ko do.
func packGzip(tar string, to io.Writer) (map[string]string, digest.Digest, error) {
	f, err := os.Open(tar)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	sum, z := digest.Canonical.Digester(), gzip.NewWriter(to)
	_, err = io.Copy(io.MultiWriter(z, sum.Hash()), f)
	return nil, sum.Digest(), errors.Join(err, z.Close())
}

func packStargz(tar string, to io.Writer) (map[string]string, digest.Digest, error) {
	built, err := images.Stargz(tar, to, estargz.WithCompressionLevel(6))
	return map[string]string{estargz.TOCJSONDigestAnnotation: string(built.TOC)}, built.DiffID, err
}

// packedLayer is one that is packed, in a file.
type packedLayer struct {
	ocispec.Descriptor
	DiffID digest.Digest
	file   string
}

// packed packs a tar once, beside it.
func (f form) packed(tar string) (l packedLayer, err error) {
	file := tar + f.suffix
	note := file + ".json" // is written last
	err = images.Once(note, func(to string) error {
		fmt.Fprintln(os.Stderr, "pack", filepath.Base(file))
		l, err := f.write(tar, file)
		if err != nil {
			return err
		}
		p, err := json.Marshal(l)
		return errors.Join(err, os.WriteFile(to, p, 0o644))
	})
	if err != nil {
		return l, err
	}
	p, err := os.ReadFile(note)
	if err == nil {
		err = json.Unmarshal(p, &l)
	}
	l.file = file
	return l, err
}

func (f form) write(tar, to string) (l packedLayer, err error) {
	out, err := os.Create(to)
	if err != nil {
		return l, err
	}
	sum := digest.Canonical.Digester()
	l.MediaType = ocispec.MediaTypeImageLayerGzip
	l.Annotations, l.DiffID, err = f.pack(tar, io.MultiWriter(out, sum.Hash()))
	l.Size, _ = out.Seek(0, io.SeekCurrent)
	l.Digest = sum.Digest()
	return l, errors.Join(err, out.Close())
}

// image is one that is in the registry.
type image struct {
	*sites.Image
	tars   []string
	files  contents
	layers []packedLayer
}

func (i *image) String() string { return i.Name + ":" + i.Tag }

// push packs layers, and puts an image of them, which has these files, into the registry.
func push(r *sites.Registry, name, tag string, f form, tars []string, files contents) (*image, error) {
	img := &image{tars: tars, files: files}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
	var layers []ocispec.Descriptor
	for _, tar := range tars {
		l, err := f.packed(tar)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(tar), err)
		}
		r.PutFile(name, l.Descriptor, l.file)
		layers, config.RootFS.DiffIDs = append(layers, l.Descriptor), append(config.RootFS.DiffIDs, l.DiffID)
		img.layers = append(img.layers, l)
	}
	p, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	img.Image, err = r.PutImage(name, tag, p, layers)
	return img, err
}

// changed returns the bytes of the layers that another image has not.
func (i *image) changed(other *image) (n int64) {
	had := make(map[digest.Digest]bool)
	for _, l := range other.layers {
		had[l.Digest] = true
	}
	for _, l := range i.layers {
		if !had[l.Digest] {
			n += l.Size
		}
	}
	return n
}

// bound returns how many bytes the chunks of newer layers have that older ones do not, as they would be sent.
func bound(older, newer []string) (int, error) {
	var pairs []pair
	for i := range max(len(older), len(newer)) {
		var p pair
		for _, side := range []struct {
			tars []string
			to   *[]byte
		}{{older, &p.older}, {newer, &p.newer}} {
			if i >= len(side.tars) {
				continue
			}
			var err error
			if *side.to, err = os.ReadFile(side.tars[i]); err != nil {
				return 0, err
			}
		}
		pairs = append(pairs, p)
	}
	n, err := tallyOf(protocol, pairs)
	return n.packed, err
}
