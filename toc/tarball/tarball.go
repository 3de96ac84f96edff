// Package tarball reads the table of a layer that is a plain tar, or one in a
// single zstd stream.
//
// [Open] walks the headers of a tar that can be read anywhere, and skips what is
// between them. [Scan] makes the same table of a tar that passes by once, and since
// all of the content passes by too, with its digests; the formats that wrap a tar
// are built on it. Both understand the ustar, PAX, GNU, STAR and V7 headers of
// POSIX.1-2024 "pax" and of GNU tar's manual, sparse files included, and read them as
// Go's archive/tar does, with which the common runtimes unpack: a layer must not
// look otherwise here than it does to them. So records of a global PAX header are
// skipped, and an archive may end without its two blocks of zeros.
//
// Whiteouts are entries like others here.
package tarball

import (
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// PieceSize is the most bytes of a file that one extent holds: 4 MiB, like the
// chunks of eStargz.
const PieceSize = 4 << 20

// window is how much of a tar is read at once: the headers of several small files,
// and not much of a large one.
const window = 64 << 10

// Open opens a plain tar. Its extents have no digests. The error wraps
// [toc.ErrFormat] when it does not begin as a tar does.
func Open(r io.ReaderAt, desc ocispec.Descriptor) (*toc.Layer, error) {
	if desc.Size < 0 {
		return nil, fmt.Errorf("tar: %w: a size of %d bytes", toc.ErrMalformed, desc.Size)
	}
	w := walker{tape: seekingTape(r, desc.Size)}
	w.place = func(x *toc.Extent, _ io.Writer) error {
		x.Start, x.End = w.tape.pos, w.tape.pos+x.Size
		return w.tape.skip(x.Size)
	}
	table, err := w.walk()
	if err != nil {
		return nil, err
	}
	return &toc.Layer{TOC: table, Inflater: plain{r, desc.Size}}, nil
}

// plain reads content out of a tar as it is.
type plain struct {
	r    io.ReaderAt
	size int64
}

// On implements [toc.Inflater].
func (p plain) On(r io.ReaderAt) toc.Inflater { return plain{r, p.size} }

// Inflate implements [toc.Inflater].
func (p plain) Inflate(x toc.Extent, off int64) (io.ReadCloser, error) {
	if err := checkExtent(x, off); err != nil {
		return nil, err
	}
	start := min(x.Start+off, p.size)
	content := io.NewSectionReader(p.r, start, min(x.Size-off, p.size-start))
	return io.NopCloser(toc.Exactly(content, x.Size-off)), nil
}

// checkExtent reports an extent that no table of a tar has, and an offset outside.
func checkExtent(x toc.Extent, off int64) error {
	if off < 0 || off > x.Size || x.Size > toc.MaxFileSize || x.Start < 0 || x.Inner < 0 || x.Inner > maxTar {
		return fmt.Errorf("tar: %w: byte %d of an extent of %d bytes, %d in", toc.ErrMalformed, off, x.Size, x.Inner)
	}
	return nil
}
