package recipe

import (
	"compress/flate"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	klauspost "github.com/klauspost/compress/flate"
	klauspost117 "github.com/klauspost/compress/v1-17/flate"

	"github.com/granary-oci/granary/toc"
)

// Family is a set of encoders that make the same bytes. Its number stands in recipes, and
// means those bytes for ever: when the module that makes them makes other ones, that is another
// family.
type Family uint8

const (
	// Go is compress/flate of the standard library: the same from Go 1.19 to 1.26.
	Go Family = 1
	// Klauspost is flate of github.com/klauspost/compress from 1.18.2 to 1.20.3. That of 1.20.4 makes
	// other bytes at every level but 0.
	Klauspost Family = 2
	// Klauspost117 is the same from 1.15.15 to 1.17.11, and 1.18.0 but for level 4. It is linked besides
	// the current one under a path that go.mod replaces: 1.17.11 is the last whose flate imports no
	// other package of its module, which would be of the current version.
	Klauspost117 Family = 3
	// Pgzip is github.com/klauspost/pgzip with Klauspost, in blocks of 1 MiB.
	Pgzip Family = 4
	// Pgzip117 is that with Klauspost117.
	Pgzip117 Family = 5
)

// families has what makes each family's deflate.
var families = map[Family]struct {
	name string
	open func(w io.Writer, level int) (deflater, error)
}{
	Go: {"Go's compress/flate", func(w io.Writer, level int) (deflater, error) { return flate.NewWriter(w, level) }},
	Klauspost: {"klauspost/compress 1.18.2 to 1.20.3", func(w io.Writer, level int) (deflater, error) {
		return klauspost.NewWriter(w, level)
	}},
	Klauspost117: {"klauspost/compress 1.15.15 to 1.18.0", func(w io.Writer, level int) (deflater, error) {
		return klauspost117.NewWriter(w, level)
	}},
	Pgzip: {"pgzip with klauspost/compress 1.18.2 to 1.20.3", func(w io.Writer, level int) (deflater, error) {
		return newBlocks(klauspost.NewWriter(w, level))
	}},
	Pgzip117: {"pgzip with klauspost/compress 1.15.15 to 1.18.0", func(w io.Writer, level int) (deflater, error) {
		return newBlocks(klauspost117.NewWriter(w, level))
	}},
}

// Levels of all families: from Huffman codes alone to the smallest.
const (
	minLevel = flate.HuffmanOnly
	maxLevel = flate.BestCompression
)

// Encoder is what compresses. Level is -2, or 0 to 9: the one that the family's default
// is, never -1.
type Encoder struct {
	Family Family
	Level  int
}

func (e Encoder) String() string {
	return fmt.Sprintf("%s at level %d", families[e.Family].name, e.Level)
}

func (e Encoder) check() error {
	if _, known := families[e.Family]; !known || e.Level < minLevel || e.Level > maxLevel || e.Level == flate.DefaultCompression {
		return fmt.Errorf("recipe: %w: encoder %d at level %d is not known here", toc.ErrLimit, e.Family, e.Level)
	}
	return nil
}

// deflater writes deflate (RFC 1951).
type deflater interface {
	io.WriteCloser
	Flush() error
	Reset(w io.Writer) // begins anew, as if it were another
}

// A block is compressed with the end of the one before as its dictionary.
const (
	blockSize = 1 << 20
	blockTail = 16 << 10
)

type dictDeflater interface {
	deflater
	ResetDict(w io.Writer, dict []byte)
}

// blocks compresses as pgzip does, whose blocks do not depend on each other but for the
// dictionary, so that many can be made at once. All but the last are full, and end with a
// flush, and a tar of whole blocks ends with an empty one.
type blocks struct {
	z    dictDeflater
	w    io.Writer
	n    int    // bytes of the block so far
	tail []byte // the last of them, up to blockTail
}

func newBlocks(z dictDeflater, err error) (*blocks, error) {
	return &blocks{z: z, tail: make([]byte, 0, blockTail)}, err
}

func (b *blocks) Reset(w io.Writer) {
	b.z.Reset(w)
	b.w, b.n, b.tail = w, 0, b.tail[:0]
}

func (b *blocks) Write(p []byte) (n int, err error) {
	for n < len(p) {
		piece := p[n:min(len(p), n+blockSize-b.n)]
		if _, err := b.z.Write(piece); err != nil {
			return n, err
		}
		n += len(piece)
		if err := b.wrote(piece); err != nil {
			return n, err
		}
	}
	return n, nil
}

// wrote ends the block that a piece has filled.
func (b *blocks) wrote(piece []byte) error {
	b.n += len(piece)
	piece = piece[max(0, len(piece)-blockTail):]
	keep := b.tail[max(0, len(b.tail)+len(piece)-blockTail):]
	b.tail = append(b.tail[:copy(b.tail, keep)], piece...)
	if b.n < blockSize {
		return nil
	}
	if err := b.z.Flush(); err != nil {
		return err
	}
	b.z.ResetDict(b.w, b.tail)
	b.n = 0
	return nil
}

func (b *blocks) Flush() error { return b.z.Flush() }

func (b *blocks) Close() error { return b.z.Close() }

const trailerSize = 8

// Deflate that was flushed before it was closed ends with the size of an empty stored block, and the
// last block, which is another such, or an empty one of fixed codes.
var (
	storedEnd = []byte{0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff}
	fixedEnd  = []byte{0x00, 0x00, 0xff, 0xff, 0x03, 0x00}
)

// packer writes members of gzip.
type packer struct {
	w    io.Writer
	z    deflater
	sum  uint32 // CRC-32 of what was written of the member
	size uint32 // and how much that was, modulo 2³²
}

func (e Encoder) packer(w io.Writer) (*packer, error) {
	z, err := families[e.Family].open(w, e.Level)
	if err != nil {
		return nil, fmt.Errorf("recipe: %v: %w", e, err)
	}
	return &packer{w: w, z: z}, nil
}

func (p *packer) begin(header []byte) error {
	p.z.Reset(p.w)
	p.sum, p.size = 0, 0
	_, err := p.w.Write(header)
	return err
}

func (p *packer) Write(b []byte) (int, error) {
	p.sum = crc32.Update(p.sum, crc32.IEEETable, b)
	p.size += uint32(len(b))
	return p.z.Write(b)
}

func (p *packer) end(flushed bool) error {
	if flushed {
		if err := p.z.Flush(); err != nil {
			return err
		}
	}
	if err := p.z.Close(); err != nil {
		return err
	}
	var trailer [trailerSize]byte
	binary.LittleEndian.PutUint32(trailer[:], p.sum)
	binary.LittleEndian.PutUint32(trailer[4:], p.size)
	_, err := p.w.Write(trailer[:])
	return err
}
