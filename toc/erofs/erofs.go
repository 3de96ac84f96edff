// Package erofs reads the tables of contents of layers that are EROFS images, as
// the kernel documents and defines them (Documentation/filesystems/erofs.rst,
// fs/erofs/erofs_fs.h), and leaves mounting to others.
//
// Everything that is not compressed is read: plain, inline and chunk-based files,
// and the form in which a tar follows the image that indexes it. Then every extent
// is a run of the layer's own bytes. An image with compressed files is an error
// that wraps [toc.ErrUnsupported] and names the compression, and so is one whose
// content is on devices of its own, or that is wrapped in a compression ("+zstd").
//
// The format is read by code of this package, for the library that there is
// (github.com/erofs/go-erofs v0.3.1) looks every path up from the root with a read
// for each block, bounds neither loops nor depth, and misnames POSIX ACLs.
//
// The inodes of an image may lie between its files' content. They are read a level
// of the tree at a time, in the order in which they lie, in aligned pieces of 64 KiB
// of which those next to each other are one read.
//
// Sockets are left out, as in every other format of layers.
package erofs

import (
	"fmt"
	"io"
	"math"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// maxMetadata bounds the bytes of an image that its table is made from, however
// often each of them is read: 4 GiB, of which 2^22 inodes take a sixteenth.
const maxMetadata = 4 << 30

// Open is a [toc.Opener].
func Open(r io.ReaderAt, desc ocispec.Descriptor) (*toc.Layer, error) {
	if _, wrapper, ok := strings.Cut(desc.MediaType, "+"); ok {
		return nil, fmt.Errorf("erofs: an image wrapped in %.20q: %w: it can only be read as a whole", wrapper, toc.ErrUnsupported)
	}
	im := &image{size: desc.Size, pieces: pieces{r: r, size: desc.Size}}
	if err := im.readSuperblock(); err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	table, err := im.walk()
	if err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	return &toc.Layer{TOC: table, Inflater: inflater{r}, Overlayfs: true}, nil
}

// image is an image while its table is made.
type image struct {
	superblock
	size   int64 // of the layer
	pieces pieces
	spent  int64            // of maxMetadata
	text   int              // bytes of names and attributes, of toc.MaxText
	chunks int64            // that files consist of, of toc.MaxExtents
	slots  map[uint16]int64 // where devices begin
	infix  []string         // of attributes' names
}

// bytes returns n bytes of the image from off on, not to be changed.
func (im *image) bytes(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || n > im.size || off > im.size-n {
		return nil, fmt.Errorf("%w: bytes %d+%d of an image of %d", toc.ErrMalformed, off, n, im.size)
	}
	if im.spent += n; im.spent > maxMetadata {
		return nil, fmt.Errorf("%w: more than %d bytes of metadata", toc.ErrLimit, int64(maxMetadata))
	}
	return im.pieces.read(off, int(n))
}

// keep counts n bytes of names and attributes, which stay in memory.
func (im *image) keep(n int) error {
	if im.text += n; im.text > toc.MaxText {
		return fmt.Errorf("%w: names and attributes of more than %d bytes", toc.ErrLimit, toc.MaxText)
	}
	return nil
}

// inflater gives the bytes of the layer.
type inflater struct{ r io.ReaderAt }

// On implements [toc.Inflater].
func (inflater) On(r io.ReaderAt) toc.Inflater { return inflater{r} }

// Inflate implements [toc.Inflater].
func (f inflater) Inflate(x toc.Extent, off int64) (io.ReadCloser, error) {
	if off < 0 || off > x.Size || x.Start < 0 || x.Start > math.MaxInt64-x.Size {
		return nil, fmt.Errorf("erofs: %w: byte %d of an extent of %d at %d", toc.ErrMalformed, off, x.Size, x.Start)
	}
	n := x.Size - off
	return io.NopCloser(toc.Exactly(io.NewSectionReader(f.r, x.Start+off, n), n)), nil
}
