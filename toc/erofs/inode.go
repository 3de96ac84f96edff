package erofs

import (
	"fmt"
	"time"

	"github.com/granary-oci/granary/toc"
)

// An inode is 32 bytes, or 64 (struct erofs_inode_compact, erofs_inode_extended):
//
//	0   format      u16   bit 0: of 64 bytes; bits 1 to 3: the layout of its content
//	2   attributes  u16   0: none; n: 12 + 4 × (n-1) bytes after the inode
//	4   mode        u16
//	6   links       u16   of 64 bytes: u32 at 44
//	8   size        u32   of 64 bytes: u64
//	16  where       u32   the first block, a device's number, or the format of chunks
//	24  uid, gid    u16   of 64 bytes: u32
//	12  time        u32   seconds after the image's; of 64 bytes: u64 at 32, nanoseconds u32 at 40
//
// Its number tells where it is, in units of 32 bytes.
const inodeUnit = 32

// Layouts of content.
const (
	layoutPlain = iota
	layoutCompressedFull
	layoutInline // the last block's bytes follow the inode
	layoutCompressed
	layoutChunks // addresses of chunks follow the inode
)

type inode struct {
	at     int64 // in the image
	end    int64 // of it and its attributes
	body   int64 // bytes before its attributes
	layout uint16
	links  uint32
	size   int64
	where  uint32
	entry  toc.Entry
}

// types are the types of entries, by bits 12 to 15 of the mode (stat.h).
var types = map[uint16]toc.Type{
	0x1: toc.FIFO, 0x2: toc.CharDevice, 0x4: toc.Directory, 0x6: toc.BlockDevice, 0x8: toc.Regular, 0xa: toc.Symlink, 0xc: socket,
}

// socket is a type that no entry has.
const socket toc.Type = 0xff

func (im *image) inodeAt(number uint64) (int64, error) {
	if number > uint64(im.size/inodeUnit) {
		return 0, fmt.Errorf("inode %d: %w: outside the image", number, toc.ErrMalformed)
	}
	return im.metadata + int64(number)*inodeUnit, nil
}

// readInode reads an inode without its attributes.
func (im *image) readInode(number uint64) (*inode, error) {
	at, err := im.inodeAt(number)
	if err != nil {
		return nil, err
	}
	p, err := im.bytes(at, 32)
	if err != nil {
		return nil, err
	}
	in := &inode{at: at, body: 32, layout: le.Uint16(p) >> 1 & 7, where: le.Uint32(p[16:])}
	if le.Uint16(p)&1 != 0 {
		in.body = 64
		if p, err = im.bytes(at, 64); err != nil {
			return nil, err
		}
	}
	in.end = at + in.body
	if n := int64(le.Uint16(p[2:])); n > 0 {
		in.end += attrsHeader + 4*(n-1)
	}
	return in, im.fill(in, p)
}

// fill sets what an inode's bytes say of the entry.
func (im *image) fill(in *inode, p []byte) error {
	mode := le.Uint16(p[4:])
	e := &in.entry
	e.Mode = uint32(mode & 0o7777)
	if len(p) == 32 {
		in.links, in.size = uint32(le.Uint16(p[6:])), int64(le.Uint32(p[8:]))
		e.UID, e.GID = uint32(le.Uint16(p[24:])), uint32(le.Uint16(p[26:]))
		e.ModTime = time.Unix(im.seconds+int64(le.Uint32(p[12:])), im.nanos)
	} else {
		in.links, in.size = le.Uint32(p[44:]), int64(le.Uint64(p[8:]))
		e.UID, e.GID = le.Uint32(p[24:]), le.Uint32(p[28:])
		e.ModTime = time.Unix(int64(le.Uint64(p[32:])), int64(le.Uint32(p[40:])))
	}
	if in.size < 0 || in.size > toc.MaxFileSize {
		return fmt.Errorf("%w: a size of %d bytes", toc.ErrLimit, uint64(in.size))
	}
	var ok bool
	if e.Type, ok = types[mode>>12]; !ok {
		return fmt.Errorf("%w: mode %#o", toc.ErrMalformed, mode)
	}
	switch e.Type {
	case toc.Regular:
		e.Size = in.size
	case toc.CharDevice, toc.BlockDevice: // as new_encode_dev (kdev_t.h) packs them
		e.Major, e.Minor = in.where>>8&0xfff, in.where&0xff|in.where>>12&0xfff00
	}
	return nil
}
