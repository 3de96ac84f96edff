package toc

import (
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is a layer that has been opened: what is in it, and how that is read.
type Layer struct {
	*TOC
	Inflater
	// Overlayfs says that the layer's whiteouts are those of overlayfs: character
	// devices 0/0, and directories with the attribute "trusted.overlay.opaque".
	// Otherwise they are those of OCI: names that begin with ".wh.".
	Overlayfs bool
	// Digested says that the table was checked against a digest that the manifest
	// carries.
	Digested bool
	// Prefetch is how many of the layer's first bytes it says are read first; 0 is
	// not said.
	Prefetch int64
}

// Inflater reads content out of a layer's bytes. It may be used by several
// goroutines.
type Inflater interface {
	// On returns the same for a layer whose bytes are read from r: the same bytes, in
	// another caller's name, or for as long as another context lives. It reads nothing.
	On(r io.ReaderAt) Inflater
	// Inflate returns an extent's content from off on, 0 ≤ off ≤ x.Size, as the
	// layer has it: unchecked, and x.Size-off bytes unless it ends with an error,
	// which is [io.ErrUnexpectedEOF] when the layer has less.
	Inflate(x Extent, off int64) (io.ReadCloser, error)
}

// Exactly returns a reader of n bytes of r, 0 ≤ n, which ends with
// [io.ErrUnexpectedEOF] if there are fewer.
func Exactly(r io.Reader, n int64) io.Reader { return &exactly{r, n} }

type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// On returns the layer as it is read from r, which has the same bytes.
func (l *Layer) On(r io.ReaderAt) *Layer {
	on := *l
	on.Inflater = l.Inflater.On(r)
	return &on
}

// Format is how a layer is laid out.
type Format string

// The formats.
const (
	EStargz     Format = "estargz"
	ZstdChunked Format = "zstd:chunked"
	Tar         Format = "tar"
	TarGzip     Format = "tar+gzip"
	TarZstd     Format = "tar+zstd"
	EROFS       Format = "erofs"
	Squashfs    Format = "squashfs"
)

// Opener opens a layer of one format: r are its bytes, of which desc has the size,
// and the digest if that is known. The error wraps [ErrFormat] when the layer is of
// another format.
type Opener func(r io.ReaderAt, desc ocispec.Descriptor) (*Layer, error)
