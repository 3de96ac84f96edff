package gzip

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
)

// An index is stored as, integers big-endian:
//
//	 8 bytes  "GRNGZIX" and the version, 1
//	32 bytes  digest of the blob
//	 8 bytes  size of the blob
//	32 bytes  digest of the tar
//	 8 bytes  size of the tar
//	 4 bytes  how many points there are
//	          the points
//	          the table as JSON, its extents without a place, in a frame of zstd
//
// and a point as, numbers as varints (encoding/binary):
//
//	          In and Out, less those of the point before
//	 1 byte   Bits
//	          size of the window as it is stored
//	32 bytes  digest
//	          the window
//
// Windows used to be stored as they are, and points to be further apart. Whoever reads
// one kind reads the other.
const (
	magic     = "GRNGZIX\x01"
	headSize  = len(magic) + 32 + 8 + 32 + 8 + 4
	minPoint  = 4 + 32
	maxPacked = maxWindow + 1024 // what does not compress becomes a little larger
	maxPoints = 2 * maxTar / Span
)

// MaxIndex is the most bytes that are read of an index: 1 GiB. One of a layer whose
// tar is 100 GiB is smaller.
const MaxIndex = 1 << 30

// Encode writes the index. The same index gives the same bytes. The error is one of w.
func (x *Index) Encode(w io.Writer) error {
	if err := x.encodePoints(w); err != nil {
		return fmt.Errorf("gzip index: %w", err)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return fmt.Errorf("gzip index: %w", err)
	}
	bare := x.Table.Place(func(toc.Extent) (start, end int64) { return 0, 0 })
	if err := toc.EncodeJSON(z, bare); err != nil {
		z.Close()
		return err
	}
	return z.Close()
}

func (x *Index) encodePoints(w io.Writer) error {
	p := x.head()
	var last Point
	for _, next := range x.Points {
		if _, err := w.Write(p); err != nil {
			return err
		}
		p, last = next.append(p[:0], last), next
	}
	_, err := w.Write(p)
	return err
}

func (x *Index) head() []byte {
	p := append(make([]byte, 0, headSize), magic...)
	p = append(p, x.Blob[:]...)
	p = binary.BigEndian.AppendUint64(p, uint64(x.Size))
	p = append(p, x.DiffID[:]...)
	p = binary.BigEndian.AppendUint64(p, uint64(x.TarSize))
	return binary.BigEndian.AppendUint32(p, uint32(len(x.Points)))
}

func (p Point) append(b []byte, last Point) []byte {
	b = binary.AppendUvarint(b, uint64(p.In-last.In))
	b = binary.AppendUvarint(b, uint64(p.Out-last.Out))
	b = append(b, p.Bits)
	b = binary.AppendUvarint(b, uint64(len(p.Window)))
	b = append(b, p.Digest[:]...)
	return append(b, p.Window...)
}

// Decode reads an index that Encode wrote, to the end of r. It believes nothing but
// what it can see; see the package's words on trust. The error is one of r, or wraps
// [toc.ErrFormat], [toc.ErrMalformed], [toc.ErrLimit] or io.ErrUnexpectedEOF.
func Decode(r io.Reader) (*Index, error) {
	b := newBlob(io.LimitReader(r, MaxIndex), readSize)
	x, err := decodePoints(b)
	if err != nil {
		return nil, err
	}
	table, err := decodeTable(b)
	if err != nil {
		return nil, err
	}
	x.Table = table
	if err := x.check(); err != nil {
		return nil, err
	}
	x.Table = x.place(table)
	return x, nil
}

func decodePoints(b *blob) (*Index, error) {
	p := make([]byte, headSize)
	if _, err := io.ReadFull(b, p); err != nil {
		return nil, fmt.Errorf("index: %w", b.fail(err))
	}
	if string(p[:len(magic)]) != magic {
		return nil, fmt.Errorf("gzip index: %w", toc.ErrFormat)
	}
	p = p[len(magic):]
	x := &Index{
		Blob: toc.Digest(p[:32]), Size: int64(binary.BigEndian.Uint64(p[32:])),
		DiffID: toc.Digest(p[40:72]), TarSize: int64(binary.BigEndian.Uint64(p[72:])),
	}
	count := binary.BigEndian.Uint32(p[80:])
	if count > maxPoints {
		return nil, fmt.Errorf("gzip index: %w: %d points", toc.ErrLimit, count)
	}
	var last Point
	for range count {
		next, err := decodePoint(b, last)
		if err != nil {
			return nil, fmt.Errorf("index: %w", b.fail(err))
		}
		x.Points = append(x.Points, next)
		last = next
	}
	return x, nil
}

func decodePoint(b *blob, last Point) (p Point, err error) {
	in, err := binary.ReadUvarint(b)
	if err != nil {
		return p, err
	}
	out, err := binary.ReadUvarint(b)
	if err != nil {
		return p, err
	}
	if p.Bits, err = b.ReadByte(); err != nil {
		return p, err
	}
	size, err := binary.ReadUvarint(b)
	if err != nil {
		return p, err
	}
	if in > maxTar || out > maxTar || size > maxPacked {
		return p, fmt.Errorf("a point %d and %d bytes on, with a window of %d", in, out, size)
	}
	// Sums of at most maxPoints of these stay far from overflowing.
	p.In, p.Out = last.In+int64(in), last.Out+int64(out)
	if _, err = io.ReadFull(b, p.Digest[:]); err != nil || size == 0 {
		return p, err
	}
	p.Window = make([]byte, size)
	_, err = io.ReadFull(b, p.Window)
	return p, err
}

func decodeTable(b *blob) (*toc.TOC, error) {
	z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(16<<20))
	if err != nil {
		return nil, fmt.Errorf("index: %w", b.fail(err))
	}
	defer z.Close()
	table, err := toc.DecodeJSON(io.LimitReader(z, toc.MaxTOCSize), 0)
	switch {
	case err == nil:
		return table, nil
	case b.src.err != nil && b.src.err != io.EOF:
		return nil, fmt.Errorf("gzip index: %w", b.src.err)
	}
	return nil, fmt.Errorf("gzip index: %w: %w", toc.ErrMalformed, err)
}
