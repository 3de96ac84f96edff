package erofs

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/granary-oci/granary/toc"
)

// The superblock is 128 bytes at 1024 (struct erofs_super_block), little-endian:
//
//	0    magic          u32   0xe0f5e1e2
//	8    compat         u32   features that may be ignored
//	12   block bits     u8    log2 of the block size
//	14   root           u16   the root's inode number
//	24   time           u64   of inodes that have none, seconds; nanoseconds: u32 at 32
//	40   metadata       u32   the block where inode numbers count from
//	44   attributes     u32   the block where shared attributes' numbers count from
//	80   incompat       u32   features that may not
//	84   algorithms     u16   of compression: a bit each
//	86   devices        u16   beside this one
//	88   device table   u16   in units of 128 bytes
//	90   directory bits u8    0: directories are of the same blocks
//	91   infixes        u8    of attributes' names; u32 at 92: where, in units of 4 bytes
//	96   packed inode   u64
const (
	superblockAt   = 1024
	superblockSize = 128
	magic          = 0xe0f5e1e2
)

// Features that change what is read here. Those of compression are told by the
// inodes that use it.
const (
	compatPlainInfixes = 0x10 // infixes lie in the image itself, not in an inode

	incompatAlgorithms = 0x2
	incompatDevices    = 0x8
	incompatFragments  = 0x20 // the packed inode holds ends of compressed files, and infixes
	incompatInfixes    = 0x40
	incompatKnown      = 0x7f // 0x80 is block addresses of 48 bits, 0x100 compressed inodes
)

type superblock struct {
	blockBits  uint
	root       uint64
	seconds    int64
	nanos      int64
	metadata   int64 // offsets in bytes
	attributes int64
	compat     uint32
	incompat   uint32
	algorithms uint16
	devices    uint16
	slotsAt    int64
	infixes    int
	infixesAt  int64
	packed     uint64
}

var le = binary.LittleEndian

// readSuperblock fails with [toc.ErrFormat] if there is none.
func (im *image) readSuperblock() error {
	if im.size < superblockAt+superblockSize {
		return fmt.Errorf("%w: %d bytes", toc.ErrFormat, im.size)
	}
	p, err := im.bytes(superblockAt, superblockSize)
	if err != nil {
		return err
	}
	if le.Uint32(p) != magic {
		return toc.ErrFormat
	}
	bits := uint(p[12])
	if bits < 9 || bits > 16 {
		return fmt.Errorf("superblock: %w: blocks of 2^%d bytes", toc.ErrMalformed, bits)
	}
	im.superblock = superblock{
		blockBits: bits, root: uint64(le.Uint16(p[14:])),
		seconds: int64(le.Uint64(p[24:])), nanos: int64(le.Uint32(p[32:])),
		metadata: int64(le.Uint32(p[40:])) << bits, attributes: int64(le.Uint32(p[44:])) << bits,
		compat: le.Uint32(p[8:]), incompat: le.Uint32(p[80:]),
		algorithms: le.Uint16(p[84:]), devices: le.Uint16(p[86:]), slotsAt: int64(le.Uint16(p[88:])) * slotSize,
		infixes: int(p[91]), infixesAt: int64(le.Uint32(p[92:])) * 4, packed: le.Uint64(p[96:]),
	}
	if unknown := im.incompat &^ incompatKnown; unknown != 0 {
		return fmt.Errorf("superblock: features %#x: %w", unknown, toc.ErrUnsupported)
	}
	if p[90] != 0 {
		return fmt.Errorf("superblock: directories of other blocks: %w", toc.ErrUnsupported)
	}
	return nil
}

// compression names how the image's files may be compressed.
func (s *superblock) compression() string {
	if s.incompat&incompatAlgorithms == 0 {
		return "lz4"
	}
	var names []string
	for i, name := range []string{"lz4", "lzma", "deflate", "zstd"} {
		if s.algorithms&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fmt.Sprintf("algorithm %#x", s.algorithms)
	}
	return strings.Join(names, " or ")
}
