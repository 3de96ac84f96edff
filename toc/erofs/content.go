package erofs

import (
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// extents returns where the content of a file, directory or symlink is.
func (im *image) extents(in *inode) ([]toc.Extent, error) {
	if in.size == 0 {
		return nil, nil
	}
	switch in.layout {
	case layoutPlain:
		return im.run(nil, 0, int64(in.where)<<im.blockBits, in.size)
	case layoutInline:
		return im.inline(in)
	case layoutChunks:
		return im.chunked(in)
	case layoutCompressed, layoutCompressedFull:
		return nil, fmt.Errorf("compressed with %s, which only the kernel reads, by mounting the image: %w", im.compression(), toc.ErrUnsupported)
	}
	return nil, fmt.Errorf("%w: layout %d", toc.ErrMalformed, in.layout)
}

// run appends n bytes that are in the layer from start on and in the file from off.
func (im *image) run(to []toc.Extent, off, start, n int64) ([]toc.Extent, error) {
	if start < 0 || start > im.size || n > im.size-start {
		return nil, fmt.Errorf("%w: content at %d+%d of an image of %d bytes", toc.ErrMalformed, start, n, im.size)
	}
	if len(to) > 0 {
		if last := &to[len(to)-1]; last.End == start && last.Offset+last.Size == off {
			last.Size += n
			last.End += n
			return to, nil
		}
	}
	return append(to, toc.Extent{Offset: off, Size: n, Start: start, End: start + n}), nil
}

// inline is for files of which the last block, whole or not, follows the inode. It
// is not across the end of a block.
func (im *image) inline(in *inode) ([]toc.Extent, error) {
	block := int64(1) << im.blockBits
	before := (in.size - 1) &^ (block - 1)
	tail := in.size - before
	if in.end&(block-1)+tail > block {
		return nil, fmt.Errorf("%w: %d bytes behind an inode at %d are across a block's end", toc.ErrMalformed, tail, in.at)
	}
	var all []toc.Extent
	var err error
	if before > 0 {
		if all, err = im.run(all, 0, int64(in.where)<<im.blockBits, before); err != nil {
			return nil, err
		}
	}
	return im.run(all, before, in.end, tail)
}

// Chunks are of 2^n blocks each, n being bits 0 to 4 of the inode's format; with bit
// 5 they are addressed by 8 bytes (struct erofs_inode_chunk_index: the device u16 at
// 2, the block u32 at 4), otherwise by a block of 4. The addresses are aligned.
const (
	chunkBits    = 0x1f
	chunkIndexes = 0x20
	noBlock      = 0xffffffff // a hole
	someChunks   = 8192       // addresses that are read at once
)

func (im *image) chunked(in *inode) ([]toc.Extent, error) {
	if odd := in.where & 0xffff &^ (chunkBits | chunkIndexes); odd != 0 {
		return nil, fmt.Errorf("chunks of format %#x: %w", odd, toc.ErrUnsupported)
	}
	bits := im.blockBits + uint(in.where&chunkBits)
	count := (in.size-1)>>bits + 1
	if im.chunks += count; im.chunks > toc.MaxExtents {
		return nil, fmt.Errorf("%w: more than %d chunks", toc.ErrLimit, toc.MaxExtents)
	}
	unit := int64(4)
	if in.where&chunkIndexes != 0 {
		unit = 8
	}
	at := (in.end + unit - 1) &^ (unit - 1)
	var all []toc.Extent
	for i := int64(0); i < count; i += someChunks {
		p, err := im.bytes(at+i*unit, min(count-i, someChunks)*unit)
		if err != nil {
			return nil, err
		}
		if all, err = im.addChunks(all, p, int(unit), i<<bits, 1<<bits, in.size); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// addChunks appends the chunks that are addressed in p, of which the first is at off
// in a file of size bytes.
func (im *image) addChunks(to []toc.Extent, p []byte, unit int, off, chunk, size int64) (all []toc.Extent, err error) {
	all = to
	for ; len(p) > 0; p = p[unit:] {
		n := min(chunk, size-off)
		block, device := le.Uint32(p[unit-4:]), uint16(0)
		if unit == 8 {
			device = le.Uint16(p[2:])
		}
		if block != noBlock {
			begin, err := im.deviceAt(device)
			if err != nil {
				return nil, err
			}
			if all, err = im.run(all, off, begin+int64(block)<<im.blockBits, n); err != nil {
				return nil, err
			}
		}
		off += n
	}
	return all, nil
}

// slotSize is the size of an entry of the table of devices (struct
// erofs_deviceslot), which has at 68 the block (u32) where a device begins that
// lies in the image itself.
const slotSize = 128

// deviceAt returns where the device of a chunk begins in the layer.
func (im *image) deviceAt(device uint16) (int64, error) {
	if im.incompat&incompatDevices == 0 || im.devices == 0 {
		return 0, nil
	}
	device &= deviceMask(im.devices)
	if device == 0 {
		return 0, nil
	}
	if at, ok := im.slots[device]; ok {
		return at, nil
	}
	if device > im.devices {
		return 0, fmt.Errorf("%w: device %d of %d", toc.ErrMalformed, device, im.devices)
	}
	p, err := im.bytes(im.slotsAt+int64(device-1)*slotSize, slotSize)
	if err != nil {
		return 0, err
	}
	at := int64(le.Uint32(p[68:])) << im.blockBits
	if at == 0 || at >= im.size {
		return 0, fmt.Errorf("content on device %d, which is not in the layer: %w", device, toc.ErrUnsupported)
	}
	if im.slots == nil {
		im.slots = make(map[uint16]int64)
	}
	im.slots[device] = at
	return at, nil
}

// deviceMask returns the bits of a chunk's device number that count: as many as the
// number of devices needs.
func deviceMask(devices uint16) uint16 {
	mask := uint16(1)
	for mask < devices {
		mask = mask<<1 | 1
	}
	return mask
}
