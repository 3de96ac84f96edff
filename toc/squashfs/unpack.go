package squashfs

import (
	"bytes"
	"fmt"
	"io"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/granary-oci/granary/toc"
)

// unpacker returns what a block was before it was compressed: at most limit bytes,
// or an error. It may be used by several goroutines.
type unpacker func(packed []byte, limit int) ([]byte, error)

// compressions are those of the superblock, by number. There is none of number 0.
var compressions = []string{"none", "gzip", "lzma", "lzo", "xz", "lz4", "zstd"}

// unpackerOf returns the unpacker for an image.
func unpackerOf(r io.ReaderAt, sb superblock) (unpacker, error) {
	switch sb.compressionName() {
	case "gzip":
		return unpackZlib, nil
	case "lzo":
		return unpackLZO, nil
	case "xz":
		return unpackXZ, checkXZ(r, sb)
	case "lz4":
		return unpackLZ4, nil
	case "zstd":
		return newZstd()
	}
	return nil, fmt.Errorf("compressed with %s: %w", sb.compressionName(), toc.ErrUnsupported)
}

func (sb *superblock) compressionName() string {
	if int(sb.compression) < len(compressions) {
		return compressions[sb.compression]
	}
	return fmt.Sprintf("algorithm %d", sb.compression)
}

// malformed says that a block cannot be unpacked.
func malformed(err error) error {
	return fmt.Errorf("%w: compressed block: %w", toc.ErrMalformed, err)
}

// errLarge says that a block unpacks to more than it may.
var errLarge = fmt.Errorf("%w: compressed block: larger than blocks are", toc.ErrMalformed)

// readAll reads what a stream unpacks to.
func readAll(r io.Reader, limit int) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(limit + bytes.MinRead)
	n, err := io.Copy(&b, io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, malformed(err)
	}
	if n > int64(limit) {
		return nil, errLarge
	}
	return b.Bytes(), nil
}

func unpackZlib(packed []byte, limit int) ([]byte, error) {
	r, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, malformed(err)
	}
	return readAll(r, limit)
}

func unpackLZO(packed []byte, limit int) ([]byte, error) {
	p := make([]byte, limit)
	n, err := lzo.Decompress(packed, p)
	if err != nil {
		return nil, malformed(err)
	}
	return p[:n], nil
}

func unpackLZ4(packed []byte, limit int) ([]byte, error) {
	p := make([]byte, limit)
	n, err := lz4.UncompressBlock(packed, p)
	if err != nil {
		return nil, malformed(err)
	}
	return p[:n], nil
}

func newZstd() (unpacker, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxBlock))
	if err != nil {
		return nil, err
	}
	return func(packed []byte, limit int) ([]byte, error) {
		p, err := d.DecodeAll(packed, nil)
		if err != nil {
			return nil, malformed(err)
		}
		if len(p) > limit {
			return nil, errLarge
		}
		return p, nil
	}, nil
}
