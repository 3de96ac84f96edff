package main

import (
	stdgzip "compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// written is what a writer of a format says of a layer that it has written.
type written struct {
	annotations map[string]string
	diffID      digest.Digest // "" for that of the source
}

// format is one that layers are written in.
type format struct {
	name      string
	mediaType string
	sparse    bool // its writer reads tars with sparse files
	// Times are kept in seconds.
	seconds bool
	// How the product calls it.
	known string
	// Digests of files are in the table, or found when it is made.
	digests bool
	write   func(l *lab, from string, to io.Writer) (written, error)
}

const (
	tarType      = ocispec.MediaTypeImageLayer
	gzipType     = ocispec.MediaTypeImageLayerGzip
	zstdType     = ocispec.MediaTypeImageLayerZstd
	erofsType    = "application/vnd.erofs.layer.v1"
	squashfsType = "application/vnd.oci.image.layer.v1.squashfs"
)

// formats are all formats, each with the program that is its own.
var formats = []format{
	{name: "tar", mediaType: tarType, sparse: true, known: "tar", write: copyTar},
	{name: "gzip", mediaType: gzipType, sparse: true, known: "tar+gzip", digests: true, write: writeGzip},
	{name: "gzip-members", mediaType: gzipType, sparse: true, known: "tar+gzip", digests: true, write: writeMembers},
	{name: "zstd", mediaType: zstdType, sparse: true, known: "tar+zstd", digests: true, write: writeZstd},
	{name: "estargz", mediaType: gzipType, seconds: true, known: "estargz", digests: true, write: writeStargz},
	{name: "zstd-stargz", mediaType: zstdType, seconds: true, known: "zstd:chunked", digests: true, write: writeChunkedStargz},
	{name: "zstd-storage", mediaType: zstdType, known: "zstd:chunked", digests: true, write: writeChunkedStorage},
	{name: "erofs", mediaType: erofsType, sparse: true, known: "erofs", write: writeEROFS},
	{name: "squashfs-gzip", mediaType: squashfsType, sparse: true, seconds: true, known: "squashfs", write: squashfsBy("gzip")},
	{name: "squashfs-zstd", mediaType: squashfsType, sparse: true, seconds: true, known: "squashfs", write: squashfsBy("zstd")},
	{name: "squashfs-xz", mediaType: squashfsType, sparse: true, seconds: true, known: "squashfs", write: squashfsBy("xz")},
}

func copyTar(_ *lab, from string, to io.Writer) (written, error) {
	return written{}, through(from, to, func(w io.Writer) (io.WriteCloser, error) { return keepOpen{w}, nil })
}

func writeGzip(l *lab, from string, to io.Writer) (written, error) {
	return written{}, through(from, to, func(w io.Writer) (io.WriteCloser, error) { return stdgzip.NewWriterLevel(w, l.effort(6)) })
}

// effort is the level of gzip: sizes count only where formats are compared.
func (l *lab) effort(level int) int {
	if l.small {
		return stdgzip.BestSpeed
	}
	return level
}

func writeZstd(_ *lab, from string, to io.Writer) (written, error) {
	return written{}, through(from, to, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })
}

// through copies a file through a compressor.
func through(from string, to io.Writer, compress func(io.Writer) (io.WriteCloser, error)) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := compress(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, f); err != nil {
		return err
	}
	return w.Close()
}

type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// memberSize is how much of the tar is in a member of gzip.
const memberSize = 1 << 20

// writeMembers writes gzip in many members, as programs do that compress in parallel.
func writeMembers(l *lab, from string, to io.Writer) (written, error) {
	f, err := os.Open(from)
	if err != nil {
		return written{}, err
	}
	defer f.Close()
	for {
		z, err := gzip.NewWriterLevel(to, l.effort(gzip.DefaultCompression))
		if err != nil {
			return written{}, err
		}
		n, err := io.CopyN(z, f, memberSize)
		if err != nil && err != io.EOF {
			return written{}, err
		}
		if cerr := z.Close(); cerr != nil || n < memberSize {
			return written{}, cerr
		}
	}
}

// writeStargz writes eStargz, with some files to be read first.
func writeStargz(l *lab, from string, to io.Writer) (written, error) {
	return buildStargz(from, to, nil, estargz.WithPrioritizedFiles([]string{smallFile, "usr/bin/env"}), estargz.WithCompressionLevel(l.effort(6)))
}

func writeChunkedStargz(_ *lab, from string, to io.Writer) (written, error) {
	annotations := make(map[string]string)
	return buildStargz(from, to, annotations, estargz.WithCompression(&struct {
		*zstdchunked.Compressor
		*zstdchunked.Decompressor
	}{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: annotations}, new(zstdchunked.Decompressor)}))
}

// buildStargz writes a layer with the module of stargz-snapshotter.
func buildStargz(from string, to io.Writer, annotations map[string]string, options ...estargz.Option) (written, error) {
	f, err := os.Open(from)
	if err != nil {
		return written{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return written{}, err
	}
	options = append(options, estargz.WithAllowPrioritizeNotFound(new([]string)))
	blob, err := estargz.Build(io.NewSectionReader(f, 0, info.Size()), options...)
	if err != nil {
		return written{}, err
	}
	defer blob.Close()
	if _, err := io.Copy(to, blob); err != nil {
		return written{}, err
	}
	out := written{map[string]string{estargz.TOCJSONDigestAnnotation: string(blob.TOCDigest())}, blob.DiffID()}
	for k, v := range annotations {
		out.annotations[k] = v
	}
	return out, nil
}

// writeChunkedStorage writes zstd:chunked with the writer of containers/storage.
func writeChunkedStorage(l *lab, from string, to io.Writer) (written, error) {
	f, err := os.Open(from)
	if err != nil {
		return written{}, err
	}
	defer f.Close()
	program, err := tool("chunked")
	if err != nil {
		return written{}, err
	}
	annotations, err := os.CreateTemp(l.dir, "annotations-*")
	if err != nil {
		return written{}, err
	}
	defer annotations.Close()
	cmd := exec.Command(program, annotations.Name())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, to, os.Stderr
	if err := cmd.Run(); err != nil {
		return written{}, fmt.Errorf("chunked: %w", err)
	}
	var out written
	return out, json.NewDecoder(annotations).Decode(&out.annotations)
}

func writeEROFS(l *lab, from string, to io.Writer) (written, error) {
	return l.fileSystem(from, to, func(dir, name string) *exec.Cmd {
		return exec.Command("mkfs.erofs", "--quiet", "-U", "b6b1a1b0-5d8e-4c05-9a52-2f7d0a9e6c11", name, dir)
	})
}

// fast are options of mksquashfs that make it fast; xz has none.
var fast = map[string][]string{"gzip": {"-Xcompression-level", "1"}, "zstd": {"-Xcompression-level", "3"}}

func squashfsBy(compression string) func(*lab, string, io.Writer) (written, error) {
	return func(l *lab, from string, to io.Writer) (written, error) {
		return l.fileSystem(from, to, func(dir, name string) *exec.Cmd {
			args := []string{dir, name, "-quiet", "-no-progress", "-noappend", "-mkfs-time", "0", "-comp", compression}
			if l.small {
				args = append(args, fast[compression]...)
			}
			return exec.Command("mksquashfs", args...)
		})
	}
}
