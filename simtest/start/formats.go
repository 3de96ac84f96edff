package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/images"
	"github.com/granary-oci/granary/simtest/netns"
)

// format is one that the image is written in.
type format struct {
	name      string
	mediaType string
	ordered   bool // files may be put first that are read first
	// write writes a layer, of which from is the tar, and says what the manifest is to
	// say of it. first are names of files that are to be read first, for formats that
	// know such.
	write func(from string, to io.Writer, first []string) (said, error)
}

// said is what a writer says of a layer that it has written.
type said struct {
	annotations map[string]string
	diffID      digest.Digest // "" for that of the tar
}

var formats = []format{
	{name: "gzip", mediaType: ocispec.MediaTypeImageLayerGzip, write: writeGzip},
	{name: "estargz", mediaType: ocispec.MediaTypeImageLayerGzip, write: writeStargz},
	{name: "estargz-first", mediaType: ocispec.MediaTypeImageLayerGzip, ordered: true, write: writeStargzFirst},
	{name: "zstd-stargz", mediaType: ocispec.MediaTypeImageLayerZstd, write: writeChunkedStargz},
	{name: "zstd-storage", mediaType: ocispec.MediaTypeImageLayerZstd, write: writeChunkedStorage},
	{name: "erofs", mediaType: "application/vnd.erofs.layer.v1", write: writeEROFS},
	{name: "squashfs", mediaType: "application/vnd.oci.image.layer.v1.squashfs", write: writeSquashfs},
}

func formatNamed(name string) (format, error) {
	for _, f := range formats {
		if f.name == name {
			return f, nil
		}
	}
	return format{}, fmt.Errorf("no format is called %q", name)
}

func writeGzip(from string, to io.Writer, _ []string) (said, error) {
	f, err := os.Open(from)
	if err != nil {
		return said{}, err
	}
	defer f.Close()
	z := gzip.NewWriter(to)
	_, err = io.Copy(z, f)
	return said{}, errors.Join(err, z.Close())
}

func writeStargz(from string, to io.Writer, _ []string) (said, error) {
	return buildStargz(from, to, nil, estargz.WithCompressionLevel(6))
}

func writeStargzFirst(from string, to io.Writer, first []string) (said, error) {
	return buildStargz(from, to, nil, estargz.WithCompressionLevel(6), estargz.WithPrioritizedFiles(first))
}

func writeChunkedStargz(from string, to io.Writer, _ []string) (said, error) {
	annotations := make(map[string]string)
	return buildStargz(from, to, annotations, estargz.WithCompression(&struct {
		*zstdchunked.Compressor
		*zstdchunked.Decompressor
	}{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: annotations}, new(zstdchunked.Decompressor)}))
}

// buildStargz writes a layer with the module of stargz-snapshotter, which may add to what is said of it.
func buildStargz(from string, to io.Writer, more map[string]string, options ...estargz.Option) (said, error) {
	built, err := images.Stargz(from, to, options...)
	out := said{map[string]string{estargz.TOCJSONDigestAnnotation: string(built.TOC)}, built.DiffID}
	maps.Copy(out.annotations, more)
	return out, err
}

// writeChunkedStorage writes zstd:chunked with the writer of containers/storage, which is
// in a program of its own.
func writeChunkedStorage(from string, to io.Writer, _ []string) (said, error) {
	f, err := os.Open(from)
	if err != nil {
		return said{}, err
	}
	defer f.Close()
	annotations, err := os.CreateTemp("", "annotations-*")
	if err != nil {
		return said{}, err
	}
	defer os.Remove(annotations.Name())
	defer annotations.Close()
	program, err := netns.Tool("chunked")
	if err != nil {
		return said{}, err
	}
	cmd := exec.Command(program, annotations.Name())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, to, os.Stderr
	if err := cmd.Run(); err != nil {
		return said{}, fmt.Errorf("chunked: %w", err)
	}
	var out said
	return out, json.NewDecoder(annotations).Decode(&out.annotations)
}

func writeEROFS(from string, to io.Writer, _ []string) (said, error) {
	return said{}, fileSystem(from, to, func(dir, name string) *exec.Cmd {
		return exec.Command("mkfs.erofs", "--quiet", "-U", "b6b1a1b0-5d8e-4c05-9a52-2f7d0a9e6c11", name, dir)
	})
}

func writeSquashfs(from string, to io.Writer, _ []string) (said, error) {
	return said{}, fileSystem(from, to, func(dir, name string) *exec.Cmd {
		return exec.Command("mksquashfs", dir, name, "-quiet", "-no-progress", "-noappend", "-mkfs-time", "0", "-comp", "zstd")
	})
}

// fileSystem writes a layer as the image of a file system, with the program that makes
// one of a directory.
func fileSystem(from string, to io.Writer, program func(dir, name string) *exec.Cmd) error {
	work, err := os.MkdirTemp("", "granary-start-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	dir, name := filepath.Join(work, "root"), filepath.Join(work, "image")
	if err := images.Unpack(from, dir); err != nil {
		return err
	}
	if out, err := program(dir, name).CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, f)
	return err
}
