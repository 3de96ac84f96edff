package tarball

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// maxWindow is the most memory that a zstd stream may ask for: 128 MiB, which zstd
// itself allows without being told (RFC 8878 section 3.1.1.1.2).
const maxWindow = 128 << 20

// ScanZstd makes the table of a tar in zstd frames that passes by, as [Scan] does.
// The error wraps [toc.ErrFormat] when it does not begin as zstd does.
func ScanZstd(r io.Reader) (*toc.TOC, error) {
	z, err := decode(r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return Scan(z)
}

// OpenZstd opens a tar in zstd frames whose table is known. What is read of it is
// inflated from its beginning: zstd has no other way in.
func OpenZstd(r io.ReaderAt, desc ocispec.Descriptor, table *toc.TOC) (*toc.Layer, error) {
	if desc.Size < 0 {
		return nil, fmt.Errorf("tar+zstd: %w: a size of %d bytes", toc.ErrMalformed, desc.Size)
	}
	placed := table.Place(func(toc.Extent) (start, end int64) { return 0, desc.Size })
	return &toc.Layer{TOC: placed, Inflater: packed{r, desc.Size}}, nil
}

// packed reads content out of a tar that is compressed with zstd.
type packed struct {
	r    io.ReaderAt
	size int64
}

// On implements [toc.Inflater].
func (p packed) On(r io.ReaderAt) toc.Inflater { return packed{r, p.size} }

// Inflate implements [toc.Inflater].
func (p packed) Inflate(x toc.Extent, off int64) (io.ReadCloser, error) {
	if err := checkExtent(x, off); err != nil {
		return nil, err
	}
	z, err := decode(io.NewSectionReader(p.r, 0, p.size))
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, z, x.Inner+off); err != nil {
		z.Close()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return &unpacked{toc.Exactly(z, x.Size-off), z}, nil
}

type unpacked struct {
	io.Reader
	io.Closer
}

// inflated is what a zstd stream inflates to. It tells errors of the stream from
// those of the reader that it comes from.
type inflated struct {
	z    *zstd.Decoder
	from source
}

// source remembers the error that reading ended with.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

func decode(r io.Reader) (*inflated, error) {
	d := &inflated{from: source{r: r}}
	buffered := bufio.NewReaderSize(&d.from, window)
	magic, err := buffered.Peek(4)
	switch {
	case err != nil && err != io.EOF:
		return nil, fmt.Errorf("tar+zstd: %w", err)
	case !isFrame(magic):
		return nil, fmt.Errorf("tar+zstd: %w", toc.ErrFormat)
	}
	d.z, err = zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxTar))
	if err != nil {
		return nil, fmt.Errorf("tar+zstd: %w", d.blame(err))
	}
	return d, nil
}

// isFrame reports whether p begins a frame, or one to skip (RFC 8878 section 3.1).
func isFrame(p []byte) bool {
	if len(p) < 4 {
		return false
	}
	return string(p) == "\x28\xb5\x2f\xfd" || p[0]&0xf0 == 0x50 && string(p[1:]) == "\x2a\x4d\x18"
}

func (d *inflated) Read(p []byte) (int, error) {
	n, err := d.z.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("tar+zstd: %w", d.blame(err))
	}
	return n, err
}

// blame returns what is to be said of an error of the decoder.
func (d *inflated) blame(err error) error {
	switch {
	case d.from.err != nil && d.from.err != io.EOF:
		return d.from.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: %w", toc.ErrLimit, err)
	}
	return fmt.Errorf("%w: %w", toc.ErrMalformed, err)
}

// Close ends decoding.
func (d *inflated) Close() error {
	d.z.Close()
	return nil
}
