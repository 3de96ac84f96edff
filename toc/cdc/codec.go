package cdc

import (
	"encoding/binary"
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// A map is stored and sent as, numbers as varints (encoding/binary):
//
//	 8 bytes  "GRNCMAP" and the version, 1
//	          how many chunks there are
//	          of each chunk twice its size, and 1 more if it is inline
//	32 bytes  of each chunk that is not: its digest
//	          of each chunk that is: its bytes
//
// The bytes, most of them headers of a tar, compress to a fortieth, which is left to who
// sends them. They are in one place for that.
const (
	magic = "GRNCMAP\x01"
	// minTwo is the fewest bytes that two chunks take, of which one is inline: two sizes, a
	// digest and one byte.
	minTwo = 1 + 1 + 32 + 1
)

// MaxEncoded is the size, in bytes, that no encoded map exceeds.
const MaxEncoded = len(magic) + binary.MaxVarintLen64 + MaxChunks*(3+len(toc.Digest{})) + maxInlined

// Append appends the map, encoded, to p.
func (m *Map) Append(p []byte) []byte {
	p = append(p, magic...)
	p = binary.AppendUvarint(p, uint64(len(m.Chunks)))
	for _, c := range m.Chunks {
		size := uint64(c.Size) << 1
		if c.Inline != nil {
			size |= 1
		}
		p = binary.AppendUvarint(p, size)
	}
	for _, c := range m.Chunks {
		if c.Inline == nil {
			p = append(p, c.Digest[:]...)
		}
	}
	for _, c := range m.Chunks {
		p = append(p, c.Inline...)
	}
	return p
}

// Decode returns the map that p is the encoding of. The map keeps p, and takes at the most about
// four times as much memory. The error wraps [toc.ErrFormat] if p does not begin as a map does,
// or one of another version, else [toc.ErrLimit] or [toc.ErrMalformed].
func Decode(p []byte) (*Map, error) {
	m, err := decode(p)
	if err != nil {
		return nil, fmt.Errorf("content map: %w", err)
	}
	return m, nil
}

func decode(p []byte) (*Map, error) {
	if len(p) < len(magic) || string(p[:len(magic)]) != magic {
		return nil, toc.ErrFormat
	}
	count, p, err := cutNumber(p[len(magic):])
	switch {
	case err != nil:
		return nil, err
	case count > MaxChunks:
		return nil, fmt.Errorf("%w: %d chunks", toc.ErrLimit, count)
	case count > uint64(2*len(p)/minTwo+1): // of any two chunks in a row one has a digest
		return nil, fmt.Errorf("%w: %d chunks in %d bytes", toc.ErrMalformed, count, len(p))
	}
	m := &Map{Chunks: make([]Chunk, count)}
	need, p, err := m.decodeSizes(p)
	switch {
	case err != nil:
		return nil, err
	case len(p) != need:
		return nil, fmt.Errorf("%w: %d bytes of digests and contents instead of %d", toc.ErrMalformed, len(p), need)
	}
	m.decodeContents(p)
	return m, nil
}

// decodeSizes sets the chunks' offsets and sizes, and marks those that are inline. It returns
// how many bytes they need of the rest of p.
func (m *Map) decodeSizes(p []byte) (need int, rest []byte, err error) {
	offset, inlined := int64(0), false
	for i := range m.Chunks {
		var n uint64
		if n, p, err = cutNumber(p); err != nil {
			return 0, nil, err
		}
		c := Chunk{Offset: offset, Size: int64(n >> 1)}
		most, takes := int64(MaxSize), len(c.Digest)
		if n&1 == 1 {
			c.Inline = p[:0]
			most, takes = MaxInline, int(c.Size)
		}
		if c.Size == 0 || c.Size > most {
			return 0, nil, fmt.Errorf("%w: a chunk of %d bytes", toc.ErrMalformed, c.Size)
		}
		if inlined && c.Inline != nil {
			return 0, nil, fmt.Errorf("%w: two inline chunks in a row", toc.ErrMalformed)
		}
		m.Chunks[i], inlined = c, c.Inline != nil
		need += takes
		offset += c.Size
	}
	return need, p, nil
}

// decodeContents sets what p has of each chunk.
func (m *Map) decodeContents(p []byte) {
	for i := range m.Chunks {
		if c := &m.Chunks[i]; c.Inline == nil {
			p = p[copy(c.Digest[:], p):]
		}
	}
	for i := range m.Chunks {
		if c := &m.Chunks[i]; c.Inline != nil {
			c.Inline, p = p[:c.Size:c.Size], p[c.Size:]
		}
	}
}

func cutNumber(p []byte) (uint64, []byte, error) {
	n, size := binary.Uvarint(p)
	if size <= 0 {
		return 0, nil, fmt.Errorf("%w: no number", toc.ErrMalformed)
	}
	return n, p[size:], nil
}
