// Package squashfs reads the tables of contents of layers that are squashfs images,
// version 4.0, as the kernel documents and defines them
// (Documentation/filesystems/squashfs.rst, fs/squashfs/squashfs_fs.h), and leaves
// mounting to others.
//
// All of an image's metadata lies at its end and is read at once. A file's extents
// are its blocks; its end may lie in a block with the ends of others, a fragment.
// Images compressed with gzip, lzo, xz, lz4 and zstd are read. The rest are errors
// that wrap [toc.ErrUnsupported] and name what is in the way: LZMA without xz, which
// kernels do not read either, and the filters for machine code that xz can have.
//
// The format is read by code of this package, for of the libraries that there are
// github.com/sylabs/squashfs gives no attributes, which opaque directories are told
// by, github.com/diskfs/go-diskfs tells neither where content lies nor the numbers
// of devices, which whiteouts are told by, and neither reads lz4.
//
// Sockets are left out, as in every other format of layers.
package squashfs

import (
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// Open is a [toc.Opener].
func Open(r io.ReaderAt, desc ocispec.Descriptor) (*toc.Layer, error) {
	sb, err := readSuperblock(r, desc.Size)
	if err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	unpack, err := unpackerOf(r, sb)
	if err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	tail, err := readTail(r, sb.inodes, sb.used)
	if err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	table, err := newWalker(sb, &metadata{base: sb.inodes, packed: tail, unpack: unpack}).walk()
	if err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	return &toc.Layer{TOC: table, Inflater: newInflater(r, sb.block, unpack), Overlayfs: true}, nil
}

// readTail reads a layer's bytes from start to end, no more than 1 MiB at a time, for
// what it says of itself may be more than there is.
func readTail(r io.ReaderAt, start, end int64) ([]byte, error) {
	const most = 1 << 20
	if end-start > toc.MaxPackedTOC {
		return nil, fmt.Errorf("%w: metadata of %d bytes", toc.ErrLimit, end-start)
	}
	var p []byte
	for start+int64(len(p)) < end {
		at := start + int64(len(p))
		piece, err := readAt(r, at, int(min(most, end-at)))
		if err != nil {
			return nil, err
		}
		if p == nil {
			p = piece
			continue
		}
		p = append(p, piece...)
	}
	return p, nil
}

// readAt reads n bytes at off.
func readAt(r io.ReaderAt, off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	if got, err := r.ReadAt(p, off); got < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return p, nil
}
