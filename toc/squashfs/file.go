package squashfs

import (
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// A block of a file, or of fragments, is described by its length in the layer (u32,
// 0: a hole), and bit 24 says that it is stored as it was. A file without a fragment
// ends in a block of its own.
const (
	blockStored = 1 << 24
	noFragment  = 0xffffffff
	someBlocks  = metaBlock / 4 // descriptions that are read at once
)

// content is what an inode says of a file's content.
type content struct {
	start    int64
	size     int64
	fragment uint32
	offset   uint32 // in the fragment
}

// readFile reads the rest of a file: where its blocks begin (u32), the fragment and
// the offset in it, the size (u32); or where they begin (u64), the size (u64), the
// size of its holes, the links, the fragment, the offset and the attributes. Then
// come the blocks.
func (w *walker) readFile(in *inode, c *cursor, more bool) error {
	n := 16
	if more {
		n = 40
	}
	p, err := c.next(n)
	if err != nil {
		return err
	}
	start, size := uint64(le.Uint32(p)), uint64(le.Uint32(p[12:]))
	f := content{fragment: le.Uint32(p[4:]), offset: le.Uint32(p[8:])}
	if more {
		start, size = le.Uint64(p), le.Uint64(p[8:])
		f.fragment, f.offset = le.Uint32(p[28:]), le.Uint32(p[32:])
		in.links, in.attrs = le.Uint32(p[24:]), le.Uint32(p[36:])
	}
	if size > toc.MaxFileSize {
		return fmt.Errorf("%w: a size of %d bytes", toc.ErrLimit, size)
	}
	if start > uint64(w.sb.used) {
		return fmt.Errorf("%w: blocks at %d", toc.ErrMalformed, start)
	}
	f.start, f.size = int64(start), int64(size)
	in.entry.Size = f.size
	in.entry.Extents, err = w.extents(f, c)
	return err
}

// extents returns a file's extents: one for each block, one for adjacent blocks that
// are stored, and one for the fragment.
func (w *walker) extents(f content, c *cursor) (all []toc.Extent, err error) {
	blocks, tail := f.size/w.sb.block, f.size%w.sb.block
	if f.fragment == noFragment && tail > 0 {
		blocks, tail = blocks+1, 0
	}
	if w.blocks += blocks; w.blocks > toc.MaxExtents {
		return nil, fmt.Errorf("%w: more than %d blocks", toc.ErrLimit, toc.MaxExtents)
	}
	at, off := f.start, int64(0)
	for left := blocks; left > 0; left -= someBlocks {
		p, err := c.next(4 * int(min(left, someBlocks)))
		if err != nil {
			return nil, err
		}
		for ; len(p) > 0; p = p[4:] {
			b := w.described(at, le.Uint32(p))
			if all, err = w.addBlock(all, b, off, min(w.sb.block, f.size-off)); err != nil {
				return nil, err
			}
			at, off = b.end, off+w.sb.block
		}
	}
	if tail == 0 {
		return all, nil
	}
	return w.addFragment(all, f, tail)
}

// span is where a block is in the layer.
type span struct {
	start, end int64
	stored     bool
}

func (w *walker) described(at int64, word uint32) span {
	return span{at, at + int64(word&^blockStored), word&blockStored != 0}
}

// check reports whether a block can be one.
func (w *walker) check(b span) error {
	if b.end > w.sb.used || b.end-b.start > w.sb.block {
		return fmt.Errorf("%w: a block at %d to %d", toc.ErrMalformed, b.start, b.end)
	}
	return nil
}

// addBlock appends a block that holds n bytes of a file, which are at off there.
func (w *walker) addBlock(to []toc.Extent, b span, off, n int64) ([]toc.Extent, error) {
	if b.start == b.end {
		return to, nil
	}
	if err := w.check(b); err != nil {
		return nil, err
	}
	x := toc.Extent{Offset: off, Size: n, Start: b.start, End: b.end}
	if !b.stored {
		return addPacked(to, x)
	}
	if !stored(x) {
		return nil, fmt.Errorf("%w: %d bytes stored in %d", toc.ErrMalformed, n, b.end-b.start)
	}
	if len(to) > 0 {
		last := &to[len(to)-1]
		if stored(*last) && last.End == b.start && last.Offset+last.Size == off {
			last.Size += n
			last.End = b.end
			return to, nil
		}
	}
	return append(to, x), nil
}

// stored reports whether an extent is the layer's bytes as they are: it is as long as
// those. One that is to be unpacked never is, see [addPacked].
func stored(x toc.Extent) bool { return x.Inner == 0 && x.End-x.Start == x.Size }

// addPacked appends an extent that is to be unpacked. One that looks stored, by its
// lengths, is given as two, which do not.
func addPacked(to []toc.Extent, x toc.Extent) ([]toc.Extent, error) {
	if !stored(x) {
		return append(to, x), nil
	}
	if x.Size == 1 {
		return nil, fmt.Errorf("%w: a compressed block of one byte", toc.ErrMalformed)
	}
	last := x
	x.Size--
	last.Offset, last.Size, last.Inner = x.Offset+x.Size, 1, x.Size
	return append(to, x, last), nil
}

// addFragment appends the end of a file, of n bytes, which is in a fragment. The
// table of those has 16 bytes for each: where it is (u64), and its description.
func (w *walker) addFragment(to []toc.Extent, f content, n int64) ([]toc.Extent, error) {
	if f.fragment >= w.sb.fragments {
		return nil, fmt.Errorf("%w: fragment %d of %d", toc.ErrMalformed, f.fragment, w.sb.fragments)
	}
	p, err := w.m.element(w.sb.fragmentsAt, int(f.fragment), 16)
	if err != nil {
		return nil, fmt.Errorf("fragment %d: %w", f.fragment, err)
	}
	if le.Uint64(p) > uint64(w.sb.used) {
		return nil, fmt.Errorf("%w: fragment %d at %d", toc.ErrMalformed, f.fragment, le.Uint64(p))
	}
	b := w.described(int64(le.Uint64(p)), le.Uint32(p[8:]))
	if err := w.check(b); err != nil {
		return nil, fmt.Errorf("fragment %d: %w", f.fragment, err)
	}
	off, inner := f.size-n, int64(f.offset)
	most := w.sb.block
	if b.stored {
		most = b.end - b.start
	}
	if inner > most-n {
		return nil, fmt.Errorf("%w: %d bytes at %d of fragment %d", toc.ErrMalformed, n, inner, f.fragment)
	}
	if b.stored {
		return append(to, toc.Extent{Offset: off, Size: n, Start: b.start + inner, End: b.start + inner + n}), nil
	}
	return addPacked(to, toc.Extent{Offset: off, Size: n, Start: b.start, End: b.end, Inner: inner})
}
