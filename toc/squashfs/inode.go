package squashfs

import (
	"fmt"
	"time"

	"github.com/granary-oci/granary/toc"
)

// An inode begins with 16 bytes (struct squashfs_base_inode):
//
//	0   type    u16
//	2   mode    u16
//	4   uid     u16   a position in the table of ids
//	6   gid     u16
//	8   time    u32   seconds
//	12  number  u32
//
// What follows depends on the type, of which there are seven, and seven more that
// can have attributes.
const (
	basicDir = iota + 1
	basicFile
	basicSymlink
	basicBlock
	basicChar
	basicFIFO
	basicSocket
	extended // this is added for those that can have attributes
	noAttrs  = 0xffffffff
)

// types are the types of entries by an inode's type.
var types = [...]toc.Type{
	basicDir: toc.Directory, basicFile: toc.Regular, basicSymlink: toc.Symlink, basicBlock: toc.BlockDevice,
	basicChar: toc.CharDevice, basicFIFO: toc.FIFO, basicSocket: socket,
}

// socket is a type that no entry has.
const socket toc.Type = 0xff

type inode struct {
	entry toc.Entry
	links uint32
	attrs uint32
	list  listing // of a directory
}

// listing is where a directory's entries are.
type listing struct {
	ref  uint64
	size int64
}

// readInode reads an inode with all that is in its own table.
func (w *walker) readInode(ref uint64) (*inode, error) {
	c, err := w.m.at(w.sb.inodes, ref)
	if err != nil {
		return nil, err
	}
	p, err := c.next(16)
	if err != nil {
		return nil, err
	}
	typ := int(le.Uint16(p))
	more := typ >= extended
	if more {
		typ -= extended - basicDir
	}
	if typ < basicDir || typ > basicSocket {
		return nil, fmt.Errorf("%w: inode of type %d", toc.ErrMalformed, le.Uint16(p))
	}
	in := &inode{links: 1, attrs: noAttrs}
	in.entry = toc.Entry{Type: types[typ], Mode: uint32(le.Uint16(p[2:]) & 0o7777), ModTime: time.Unix(int64(le.Uint32(p[8:])), 0)}
	uid, gid := int(le.Uint16(p[4:])), int(le.Uint16(p[6:]))
	if in.entry.UID, err = w.id(uid); err != nil {
		return nil, err
	}
	if in.entry.GID, err = w.id(gid); err != nil {
		return nil, err
	}
	switch typ {
	case basicDir:
		return in, in.readDir(c, more)
	case basicFile:
		return in, w.readFile(in, c, more)
	case basicSymlink:
		return in, in.readSymlink(c, more)
	}
	return in, in.readSpecial(c, typ, more)
}

// id returns the user or group at a position in the table of ids.
func (w *walker) id(i int) (uint32, error) {
	if i >= int(w.sb.ids) {
		return 0, fmt.Errorf("%w: id %d of %d", toc.ErrMalformed, i, w.sb.ids)
	}
	p, err := w.m.element(w.sb.idsAt, i, 4)
	if err != nil {
		return 0, fmt.Errorf("id %d: %w", i, err)
	}
	return le.Uint32(p), nil
}

// readDir reads the rest of a directory: the block, the links, the size (u16) and
// offset (u16) of its listing, the parent; or the links, the size (u32), the block,
// the parent, the length of an index that is not needed (u16), the offset (u16) and
// the attributes. The size is 3 more than it is.
func (in *inode) readDir(c *cursor, more bool) error {
	n := 16
	if more {
		n = 24
	}
	p, err := c.next(n)
	if err != nil {
		return err
	}
	block, offset, size := le.Uint32(p), le.Uint16(p[10:]), int64(le.Uint16(p[8:]))
	if more {
		block, offset, size = le.Uint32(p[8:]), le.Uint16(p[18:]), int64(le.Uint32(p[4:]))
		in.attrs = le.Uint32(p[20:])
	}
	in.list = listing{uint64(block)<<16 | uint64(offset), max(0, size-3)}
	return nil
}

// readSymlink reads the rest of a symlink: the links, the target's length, the
// target, and the attributes.
func (in *inode) readSymlink(c *cursor, more bool) error {
	p, err := c.next(8)
	if err != nil {
		return err
	}
	in.links = le.Uint32(p)
	n := le.Uint32(p[4:])
	if n > toc.MaxName {
		return fmt.Errorf("%w: a target of %d bytes", toc.ErrLimit, n)
	}
	target, err := c.next(int(n))
	if err != nil {
		return err
	}
	in.entry.Link = string(target)
	return in.readAttrsIndex(c, more)
}

// readSpecial reads the rest of a device, FIFO or socket: the links, a device's
// number, and the attributes. The number is packed as by new_encode_dev (kdev_t.h).
func (in *inode) readSpecial(c *cursor, typ int, more bool) error {
	p, err := c.next(4)
	if err != nil {
		return err
	}
	in.links = le.Uint32(p)
	if typ == basicBlock || typ == basicChar {
		if p, err = c.next(4); err != nil {
			return err
		}
		device := le.Uint32(p)
		in.entry.Major, in.entry.Minor = device>>8&0xfff, device&0xff|device>>12&0xfff00
	}
	return in.readAttrsIndex(c, more)
}

func (in *inode) readAttrsIndex(c *cursor, more bool) error {
	if !more {
		return nil
	}
	p, err := c.next(4)
	if err != nil {
		return err
	}
	in.attrs = le.Uint32(p)
	return nil
}
