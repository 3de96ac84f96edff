package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An archive is an OCI image layout in a tar file (image-spec, image-layout.md). It is written
// from its beginning to its end, as the blobs come: oci-layout and index.json first, so that
// who reads it knows what it is about to get, then blobs, then manifests, each after what it
// names. Nothing in it tells when or by whom it was written, so the same images make the
// same file.

// writeArchive writes images, of which all is known, to an archive. The file has its name only
// when it is complete.
func writeArchive(ctx context.Context, name string, images []*puller) (err error) {
	part := name + ".part"
	f, err := os.Create(part)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(part)
		}
	}()
	a := &archive{tar: tar.NewWriter(f), there: make(map[string]bool)}
	err = a.writeAll(ctx, images)
	if cerr := a.tar.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(part, name)
}

// archive is an archive that is being written.
type archive struct {
	tar   *tar.Writer
	there map[string]bool // by name
}

func (a *archive) writeAll(ctx context.Context, images []*puller) error {
	var entries []ocispec.Descriptor
	for _, p := range images {
		entries = append(entries, p.entries()...)
	}
	index, err := withEntries(newIndex(), entries)
	if err == nil {
		err = a.small(ocispec.ImageLayoutFile, layoutMarker())
	}
	if err == nil {
		err = a.small(ocispec.ImageIndexFile, index)
	}
	if err != nil {
		return err
	}
	for _, p := range images {
		if err := a.image(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.want, err)
		}
	}
	return nil
}

// image writes what belongs to an image and is not there yet.
func (a *archive) image(ctx context.Context, p *puller) error {
	for _, n := range p.wanted() {
		if a.there[blobName(n.Digest)] {
			continue
		}
		err := p.read(ctx, n, func(r io.Reader) error { return a.add(n.Descriptor, r) })
		if err != nil {
			return err
		}
	}
	for _, m := range manifestsOf(p.graph) {
		if a.there[blobName(m.Digest)] {
			continue
		}
		if err := a.add(m, bytes.NewReader(m.Data)); err != nil {
			return err
		}
	}
	return nil
}

// add writes what a descriptor describes.
func (a *archive) add(desc ocispec.Descriptor, r io.Reader) error {
	if err := a.folders(desc.Digest); err != nil {
		return err
	}
	if err := a.file(blobName(desc.Digest), desc.Size); err != nil {
		return err
	}
	return copyVerified(a.tar, r, desc)
}

// folders writes the directories that a blob is in, if it is the first in them.
func (a *archive) folders(d digest.Digest) error {
	for _, name := range []string{ocispec.ImageBlobsDir, path.Join(ocispec.ImageBlobsDir, string(d.Algorithm()))} {
		if a.there[name] {
			continue
		}
		a.there[name] = true
		if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) small(name string, p []byte) error {
	if err := a.file(name, int64(len(p))); err != nil {
		return err
	}
	_, err := a.tar.Write(p)
	return err
}

// file begins a file.
func (a *archive) file(name string, size int64) error {
	a.there[name] = true
	return a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644})
}
