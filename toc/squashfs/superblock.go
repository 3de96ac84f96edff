package squashfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/granary-oci/granary/toc"
)

// The superblock is the first 96 bytes (struct squashfs_super_block), little-endian:
//
//	0   magic        u32   "hsqs"
//	12  block size   u32   2^12 to 2^20
//	16  fragments    u32   how many
//	20  compression  u16
//	22  block log    u16   log2 of the block size
//	24  flags        u16
//	26  ids          u16   how many
//	28  version      u16   4, and u16 at 30: 0
//	32  root         u64   where the root's inode is
//	40  used         u64   the image's size
//	48  ids          u64   offsets of tables; all ones: there is none
//	56  attributes   u64
//	64  inodes       u64
//	72  directories  u64
//	80  fragments    u64
//	88  exports      u64
const (
	superblockSize = 96
	magic          = "hsqs"
	maxBlock       = 1 << 20
	none           = 1<<64 - 1
	hasOptions     = 0x400 // a flag: the compression's options follow the superblock
)

type superblock struct {
	block       int64 // bytes
	compression uint16
	flags       uint16
	root        uint64
	used        int64
	fragments   uint32
	ids         uint16
	inodes      int64 // offsets in the layer; 0 of a table that is not there
	dirs        int64
	fragmentsAt int64
	idsAt       int64
	attrsAt     int64
}

var le = binary.LittleEndian

// readSuperblock fails with [toc.ErrFormat] if there is none.
func readSuperblock(r io.ReaderAt, size int64) (sb superblock, err error) {
	if size < superblockSize {
		return sb, fmt.Errorf("%w: %d bytes", toc.ErrFormat, size)
	}
	p, err := readAt(r, 0, superblockSize)
	if err != nil {
		return sb, err
	}
	if string(p[:4]) != magic {
		return sb, toc.ErrFormat
	}
	sb = superblock{
		block: int64(le.Uint32(p[12:])), fragments: le.Uint32(p[16:]), compression: le.Uint16(p[20:]), flags: le.Uint16(p[24:]),
		ids: le.Uint16(p[26:]), root: le.Uint64(p[32:]),
	}
	major, minor := le.Uint16(p[28:]), le.Uint16(p[30:])
	log := bits.TrailingZeros64(uint64(sb.block))
	switch {
	case major != 4 || minor != 0:
		return sb, fmt.Errorf("version %d.%d: %w", major, minor, toc.ErrUnsupported)
	case sb.block < 1<<12 || sb.block > maxBlock || sb.block != 1<<log || int(le.Uint16(p[22:])) != log:
		return sb, fmt.Errorf("superblock: %w: blocks of %d bytes", toc.ErrMalformed, sb.block)
	}
	used := le.Uint64(p[40:])
	if used > uint64(size) {
		return sb, fmt.Errorf("superblock: %w: an image of %d bytes in a layer of %d", toc.ErrMalformed, used, size)
	}
	sb.used = int64(used)
	return sb, sb.placeTables(p)
}

// placeTables takes the tables' offsets. The inodes come first, as in the kernel,
// which requires the order.
func (sb *superblock) placeTables(p []byte) error {
	for _, t := range []struct {
		name string
		to   *int64
		at   uint64
		must bool
	}{
		{"inodes", &sb.inodes, le.Uint64(p[64:]), true},
		{"directories", &sb.dirs, le.Uint64(p[72:]), true},
		{"ids", &sb.idsAt, le.Uint64(p[48:]), true},
		{"fragments", &sb.fragmentsAt, le.Uint64(p[80:]), sb.fragments > 0},
		{"attributes", &sb.attrsAt, le.Uint64(p[56:]), false},
	} {
		if t.at == none && !t.must {
			continue
		}
		if t.at < uint64(max(sb.inodes, superblockSize)) || t.at > uint64(sb.used) {
			return fmt.Errorf("superblock: %w: %s at %d of %d bytes", toc.ErrMalformed, t.name, t.at, sb.used)
		}
		*t.to = int64(t.at)
	}
	return nil
}
