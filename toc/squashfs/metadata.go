package squashfs

import (
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// Metadata is a sequence of blocks: a header of two bytes, which is the length of
// what follows and in bit 15 whether that is as it was, and 8192 bytes, compressed.
// The last block of a table may be of fewer.
const (
	metaBlock  = 8192
	metaHeader = 2
	metaStored = 1 << 15
)

// metadata are the tables of an image, from base on.
type metadata struct {
	base   int64
	packed []byte
	unpack unpacker
	blocks map[int64]block // by where they are in the layer
	spent  int64           // bytes of table entries that were read
}

type block struct {
	p    []byte
	next int64 // where the next one is
}

// block returns the block at an offset in the layer. Each is unpacked once, and
// counts as whole: so their number is bounded with their size.
func (m *metadata) block(at int64) (b block, err error) {
	if b, ok := m.blocks[at]; ok {
		return b, nil
	}
	if len(m.blocks) >= toc.MaxTOCSize/metaBlock {
		return b, fmt.Errorf("%w: more than %d bytes of metadata", toc.ErrLimit, toc.MaxTOCSize)
	}
	head, err := m.raw(at, metaHeader)
	if err != nil {
		return b, err
	}
	n := int64(le.Uint16(head) &^ metaStored)
	if b.p, err = m.raw(at+metaHeader, n); err != nil {
		return b, err
	}
	if le.Uint16(head)&metaStored == 0 {
		b.p, err = m.unpack(b.p, metaBlock)
	}
	if err == nil && (len(b.p) == 0 || len(b.p) > metaBlock) {
		err = fmt.Errorf("%w: %d bytes", toc.ErrMalformed, len(b.p))
	}
	if err != nil {
		return b, fmt.Errorf("metadata block at %d: %w", at, err)
	}
	b.next = at + metaHeader + n
	if m.blocks == nil {
		m.blocks = make(map[int64]block)
	}
	m.blocks[at] = b
	return b, nil
}

// raw returns n bytes at an offset in the layer, as they are there.
func (m *metadata) raw(at, n int64) ([]byte, error) {
	off := at - m.base
	if off < 0 || off > int64(len(m.packed))-n {
		return nil, fmt.Errorf("%w: metadata at %d+%d is outside the tables", toc.ErrMalformed, at, n)
	}
	return m.packed[off : off+n], nil
}

// maxMetadata bounds the bytes that are read of tables, however often: 4 GiB.
const maxMetadata = 4 << 30

// cursor reads metadata in order.
type cursor struct {
	m   *metadata
	b   block
	off int // in b
}

// at returns a cursor at a reference: where a block is, from the beginning of its
// table, and the offset in it, once it is unpacked, in the low 16 bits.
func (m *metadata) at(table int64, ref uint64) (*cursor, error) {
	if ref>>16 > uint64(m.base)+uint64(len(m.packed)) {
		return nil, fmt.Errorf("%w: metadata at %#x", toc.ErrMalformed, ref)
	}
	b, err := m.block(table + int64(ref>>16))
	if err != nil {
		return nil, err
	}
	off := int(ref & 0xffff)
	if off > len(b.p) {
		return nil, fmt.Errorf("%w: metadata at %d of a block of %d bytes", toc.ErrMalformed, off, len(b.p))
	}
	return &cursor{m, b, off}, nil
}

// next returns the next n bytes, not to be changed.
func (c *cursor) next(n int) ([]byte, error) {
	if c.m.spent += int64(n); c.m.spent > maxMetadata {
		return nil, fmt.Errorf("%w: more than %d bytes of metadata", toc.ErrLimit, int64(maxMetadata))
	}
	if n <= len(c.b.p)-c.off {
		c.off += n
		return c.b.p[c.off-n : c.off : c.off], nil
	}
	var p []byte
	for {
		k := min(n-len(p), len(c.b.p)-c.off)
		p = append(p, c.b.p[c.off:c.off+k]...)
		c.off += k
		if len(p) == n {
			return p, nil
		}
		b, err := c.m.block(c.b.next)
		if err != nil {
			return nil, err
		}
		c.b, c.off = b, 0
	}
}

// element returns the bytes of the i-th of a table's elements of a size that divides
// that of blocks. Such a table is a list of where its blocks are (u64 each).
func (m *metadata) element(table int64, i, size int) ([]byte, error) {
	each := metaBlock / size
	p, err := m.raw(table+int64(i/each)*8, 8)
	if err != nil {
		return nil, err
	}
	at := le.Uint64(p)
	if at > uint64(m.base)+uint64(len(m.packed)) {
		return nil, fmt.Errorf("%w: metadata at %#x", toc.ErrMalformed, at)
	}
	c, err := m.at(int64(at), uint64(i%each*size))
	if err != nil {
		return nil, err
	}
	return c.next(size)
}
