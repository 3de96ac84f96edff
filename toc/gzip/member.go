package gzip

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"

	"github.com/granary-oci/granary/toc"
)

// Flags of a member's header (RFC 1952 section 2.3.1).
const (
	hasCRC     = 1 << 1
	hasExtra   = 1 << 2
	hasName    = 1 << 3
	hasComment = 1 << 4
	reserved   = 0xe0
)

const (
	trailerSize = 8
	maxText     = 64 << 10 // bytes of a name or comment
)

// blob is a layer that is read forwards. It tells errors of the reader from those of
// what is read, and knows where it is.
type blob struct {
	*bufio.Reader
	src source
}

type source struct {
	r    io.Reader
	n    int64     // bytes that were read
	hash hash.Hash // of them; nil for none
	last []byte    // of them; nothing is kept if it has no capacity
	err  error     // that reading ended with
}

// Read fails for ever once it has: one who looks ahead must not take the end with it.
func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	if s.hash != nil {
		s.hash.Write(p[:n])
	}
	if cap(s.last) > 0 {
		s.keep(p[:n])
	}
	if err != nil {
		s.err = err
	}
	return n, err
}

// keep keeps what was read, and of what was read before it so much as who looks ahead
// has not come to yet, and what the inflater is ahead by.
func (s *source) keep(p []byte) {
	if len(s.last)+len(p) > cap(s.last) {
		s.last = append(s.last[:0], s.last[max(0, len(s.last)-traced-lookahead):]...)
	}
	s.last = append(s.last, p...)
}

// newBlob returns a blob that reads r in pieces of up to size bytes.
func newBlob(r io.Reader, size int) *blob {
	b := &blob{src: source{r: r}}
	b.Reader = bufio.NewReaderSize(&b.src, size)
	return b
}

// newPassingBlob returns a blob that is hashed as it passes, and can be looked at ahead.
func newPassingBlob(r io.Reader) *blob {
	b := newBlob(r, piece)
	b.src.hash = sha256.New()
	b.src.last = make([]byte, 0, 2*piece)
	return b
}

// peek returns what is from byte at on, which the inflater has just come to: as much as
// is traced, or less at the blob's end, or where it cannot be read.
func (b *blob) peek(at int64) []byte {
	b.Peek(traced) //nolint:errcheck // whoever reads on meets it again
	last := b.src.last
	skip := int64(len(last)) - (b.src.n - at)
	if skip < 0 {
		return nil
	}
	return bytes.Clone(last[skip:min(skip+traced, int64(len(last)))])
}

// pos returns how much of the blob is consumed.
func (b *blob) pos() int64 { return b.src.n - int64(b.Buffered()) }

// fail returns the error to report when reading the blob led to err.
func (b *blob) fail(err error) error {
	switch {
	case b.src.err != nil && b.src.err != io.EOF:
		err = b.src.err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	case err != io.ErrUnexpectedEOF:
		err = fmt.Errorf("%w: %w", toc.ErrMalformed, err)
	}
	return fmt.Errorf("gzip: at byte %d: %w", b.pos(), err)
}

// stop makes the next read of the blob fail.
func (b *blob) stop(err error) {
	b.src.err = err
	b.Reset(&b.src)
}

// header reads a member's header. It is io.EOF when nothing but zeros is left, with
// which some tools fill up their last block.
func (b *blob) header() error {
	for first := true; ; first = false {
		p, err := b.Peek(1)
		switch {
		case err == io.EOF && (b.src.err == nil || b.src.err == io.EOF):
			return io.EOF
		case err != nil:
			return b.fail(err)
		case p[0] != 0 && first:
			return b.fields()
		case p[0] != 0 || b.pos() == 0:
			return b.fail(errHeader)
		}
		for p, _ = b.Peek(b.Buffered()); len(p) > 0 && p[0] == 0; p = p[1:] {
			b.Discard(1) //nolint:errcheck // it is in the buffer
		}
	}
}

var (
	errHeader  = errors.New("no gzip header where one should be")
	errTrailer = errors.New("a member is not what its checksum says")
)

// fields reads a header (RFC 1952 section 2.3).
func (b *blob) fields() error {
	if magic, _ := b.Peek(3); string(magic) != "\x1f\x8b\x08" {
		return b.fail(errHeader)
	}
	sum := crc32.NewIEEE()
	var head [10]byte
	if err := b.fill(head[:], sum); err != nil {
		return b.fail(err)
	}
	flags := head[3]
	if flags&reserved != 0 {
		return b.fail(errHeader)
	}
	if flags&hasExtra != 0 {
		if err := b.extra(sum); err != nil {
			return b.fail(err)
		}
	}
	for _, flag := range []byte{hasName, hasComment} {
		if flags&flag == 0 {
			continue
		}
		if err := b.text(sum); err != nil {
			return b.fail(err)
		}
	}
	if flags&hasCRC == 0 {
		return nil
	}
	want := uint16(sum.Sum32())
	if err := b.fill(head[:2], sum); err != nil {
		return b.fail(err)
	}
	if binary.LittleEndian.Uint16(head[:2]) != want {
		return b.fail(errHeader)
	}
	return nil
}

func (b *blob) fill(p []byte, sum io.Writer) error {
	_, err := io.ReadFull(b, p)
	sum.Write(p) //nolint:errcheck // a hash
	return err
}

func (b *blob) extra(sum io.Writer) error {
	var size [2]byte
	if err := b.fill(size[:], sum); err != nil {
		return err
	}
	return b.fill(make([]byte, binary.LittleEndian.Uint16(size[:])), sum)
}

// text passes over a text that ends with a zero.
func (b *blob) text(sum io.Writer) error {
	for range maxText {
		c, err := b.ReadByte()
		if err != nil {
			return err
		}
		sum.Write([]byte{c}) //nolint:errcheck // a hash
		if c == 0 {
			return nil
		}
	}
	return errHeader
}

// trailer reads a member's end, and compares it with the sum and size of its content.
func (b *blob) trailer(sum, size uint32) error {
	var p [trailerSize]byte
	if _, err := io.ReadFull(b, p[:]); err != nil {
		return b.fail(err)
	}
	if binary.LittleEndian.Uint32(p[:]) != sum || binary.LittleEndian.Uint32(p[4:]) != size {
		return b.fail(errTrailer)
	}
	return nil
}

// member is a member, or what is left of one, that is being inflated.
type member struct {
	blob    *blob
	in, out int64 // the first byte that is inflated, and of the tar that comes out
	ahead   int64 // bytes by which the inflater takes itself to be ahead
}

// end returns the point behind a block, without its window.
//
// The inflater counts those bytes twice that it has looked at before it finds that a
// stored block begins. Behind the block it has no bits left, so that the blob is
// exactly there; and elsewhere it is never before the blob.
func (m *member) end(at flate.InflateCheckpoint) Point {
	m.ahead = max(m.ahead, at.CompressedOffset-(m.blob.pos()-m.in))
	return Point{In: m.in + at.CompressedOffset - m.ahead, Bits: at.BitOffset, Out: m.out + at.UncompressedOffset}
}
