package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"path"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An archive is an OCI image layout in a tar file (image-spec, image-layout.md). It is written
// from its beginning to its end, as the blobs come: oci-layout and index.json first, so that
// who reads it knows what it is about to get, then blobs, then manifests, each after what it
// names. Nothing in it tells when or by whom it was written, so the same images make the
// same file.

// writeArchive writes images, of which all is known, to an archive, or what an interrupted one
// lacks. The file has its name only when it is complete.
func writeArchive(ctx context.Context, name string, images []*puller) error {
	w, err := openPart(name, name+".part")
	if err != nil {
		return err
	}
	if !w.begins(ocispec.ImageLayoutFile + "\x00") {
		w.Close()
		return fmt.Errorf("%s.part: it is somebody else's: what an export leaves begins with %s", name, ocispec.ImageLayoutFile)
	}
	a := &archive{out: w, there: make(map[string]bool)}
	return w.finish(a.writeAll(ctx, images))
}

// archive is an archive that is being written.
type archive struct {
	out   *part
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
	return a.zeros(2 * block) // the end
}

// image writes what belongs to an image and is not there yet.
func (a *archive) image(ctx context.Context, p *puller) error {
	for _, n := range p.wanted() {
		if a.there[blobName(n.Digest)] {
			continue
		}
		if err := a.add(n.Descriptor, p.fetcher(ctx, n)); err != nil {
			return err
		}
	}
	for _, m := range manifestsOf(p.graph) {
		if a.there[blobName(m.Digest)] {
			continue
		}
		if err := a.add(m, inMemory(m.Data)); err != nil {
			return err
		}
	}
	return nil
}

// add writes what a descriptor describes.
func (a *archive) add(desc ocispec.Descriptor, from fetcher) error {
	for _, dir := range []string{ocispec.ImageBlobsDir, path.Join(ocispec.ImageBlobsDir, string(desc.Digest.Algorithm()))} {
		if a.there[dir] {
			continue
		}
		if err := a.header(dir, tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	return a.file(blobName(desc.Digest), desc.Size, func() error { return a.out.blob(desc, from) })
}

func (a *archive) small(name string, p []byte) error {
	return a.file(name, int64(len(p)), func() error { _, err := a.out.Write(p); return err })
}

// file writes a file, whose content do writes.
func (a *archive) file(name string, size int64, do func() error) error {
	err := a.header(name, tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644})
	if err == nil {
		err = do()
	}
	if err == nil {
		err = a.zeros(-size & (block - 1))
	}
	return err
}

// block is what a tar is made of, in bytes.
const block = 512

func (a *archive) header(name string, h tar.Header) error {
	a.there[name] = true
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		return err
	}
	_, err := a.out.Write(b.Bytes())
	return err
}

func (a *archive) zeros(n int64) error {
	_, err := a.out.Write(make([]byte, n))
	return err
}
