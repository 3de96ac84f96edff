package chunkstore

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// findShares finds out, when the store is opened, which chunks of the same digest stand in the
// same place of the disk, by where each begins. No record could say: files are copied and
// defragmented. Chunks whose digests are not known, and those on a file system that tells no
// places, count in full, as if they shared nothing.
func (s *Disk) findShares() {
	type place struct {
		sum string
		at  uint64
	}
	first := make(map[place]sharer)
	for b, chunks := range s.twins() {
		f, err := os.Open(s.path(b.digest))
		if err != nil {
			continue
		}
		for _, i := range chunks {
			at, ok := physical(f, b.ref(i))
			if !ok {
				continue
			}
			p := place{b.sums.at(i).digest, at}
			if src, shared := first[p]; shared {
				s.join(src, sharer{b, i})
			} else {
				first[p] = sharer{b, i}
			}
		}
		f.Close()
	}
}

// twins returns the chunks of which others have the digest.
func (s *Disk) twins() map[*blob][]int {
	first := make(map[string]sharer)
	all := make(map[*blob][]int)
	add := func(c sharer) { all[c.b] = append(all[c.b], c.i) }
	for _, b := range s.blobs {
		for i := range b.chunks() {
			if !b.have.has(i) || b.sums.at(i).digest == "" || b.ref(i).Size < cloneLeast {
				continue
			}
			sum := b.sums.at(i).digest
			src, another := first[sum]
			switch {
			case !another:
				first[sum] = sharer{b, i}
				continue
			case src.b != nil:
				add(src)
				first[sum] = sharer{} // added
			}
			add(sharer{b, i})
		}
	}
	return all
}

// fiemap is struct fiemap with one struct fiemap_extent (linux/fiemap.h).
type fiemap struct {
	start, length           uint64
	flags, mapped, count, _ uint32
	logical, physical, size uint64
	_                       [2]uint64
	extentFlags             uint32
	_                       [3]uint32
}

const (
	fsIocFiemap = 0xC020660B // _IOWR('f', 11, struct fiemap), on all architectures

	extentUnknown, extentDelayed, extentEncoded, extentInline = 0x2, 0x4, 0x8, 0x200
)

// physical returns where the first byte of a chunk is on disk, if that is a place.
func physical(f *os.File, ref chunk.Ref) (at uint64, ok bool) {
	m := fiemap{start: uint64(ref.Offset), length: uint64(ref.Size), count: 1}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m)))
	if errno != 0 || m.mapped == 0 || m.logical > m.start || m.extentFlags&(extentUnknown|extentDelayed|extentInline) != 0 {
		return 0, false
	}
	if m.extentFlags&extentEncoded != 0 { // compressed, by less than a chunk at a time: it begins somewhere in that
		return m.physical, true
	}
	return m.physical + m.start - m.logical, true
}
