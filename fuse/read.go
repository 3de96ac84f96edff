package fuse

import (
	"context"
	"errors"
	"io/fs"
	"sort"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// Read reads a part of a file: all of it that there is, or nothing.
func (f *FileSystem) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	file, ok := f.file(in.NodeId)
	if !ok || file.Type != toc.Regular {
		return nil, gofuse.EINVAL
	}
	if in.Offset >= uint64(file.Size) {
		return gofuse.ReadResultData(nil), gofuse.OK
	}
	off := int64(in.Offset)
	p := buf[:min(int64(len(buf)), file.Size-off)]
	ctx, done := context.WithTimeout(&gofuse.Context{Caller: in.Caller, Cancel: cancel}, f.cfg.ReadTimeout)
	defer done()
	if err := f.fill(ctx, in.NodeId, &file, p, off); err != nil {
		return nil, f.failed(cancel, &file, off, err)
	}
	f.usage.read(len(p))
	return gofuse.ReadResultData(p), gofuse.OK
}

// fill reads all of p at off of a file: zeros for holes, and the rest in few pieces.
func (f *FileSystem) fill(ctx context.Context, number uint64, file *toc.File, p []byte, off int64) error {
	for len(p) > 0 {
		n, hole := run(file.Extents, off, int64(len(p)))
		if hole {
			clear(p[:n])
		} else {
			if err := f.cfg.Contents.ReadAt(ctx, file, p[:n], off); err != nil {
				return err
			}
			f.usage.fetched(number, file.Size, off, n)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// smallHole is how large a hole may be, in bytes, to be read with what is around it.
const smallHole = 64 << 10

// run returns how many of the size bytes at off are to be read at once, and whether
// they are a hole.
func run(extents []toc.Extent, off, size int64) (n int64, hole bool) {
	i := extentAt(extents, off)
	if i == len(extents) {
		return size, true
	}
	if x := extents[i]; off < x.Offset {
		return min(size, x.Offset-off), true
	}
	end := extents[i].Offset + extents[i].Size
	for i++; i < len(extents) && end < off+size && extents[i].Offset-end <= smallHole; i++ {
		end = extents[i].Offset + extents[i].Size
	}
	return min(size, end-off), false
}

// extentAt returns which extent is the first that does not end before off, or at it.
func extentAt(extents []toc.Extent, off int64) int {
	return sort.Search(len(extents), func(i int) bool { return extents[i].Offset+extents[i].Size > off })
}

// Lseek finds the next content, or the next hole.
func (f *FileSystem) Lseek(_ <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	file, ok := f.file(in.NodeId)
	if !ok || file.Type != toc.Regular {
		return gofuse.EINVAL
	}
	off := int64(in.Offset)
	i := extentAt(file.Extents, off)
	switch {
	case off < 0 || off >= file.Size, in.Whence == unix.SEEK_DATA && i == len(file.Extents):
		return gofuse.Status(unix.ENXIO)
	case in.Whence == unix.SEEK_DATA:
		out.Offset = uint64(max(off, file.Extents[i].Offset))
		return gofuse.OK
	case in.Whence != unix.SEEK_HOLE:
		return gofuse.EINVAL
	}
	for ; i < len(file.Extents) && file.Extents[i].Offset <= off; i++ {
		off = file.Extents[i].Offset + file.Extents[i].Size
	}
	out.Offset = uint64(off)
	return gofuse.OK
}

// failed returns what the program is told of an error.
func (f *FileSystem) failed(cancel <-chan struct{}, file *toc.File, off int64, err error) gofuse.Status {
	select {
	case <-cancel:
		return gofuse.EINTR
	default:
	}
	f.cfg.Log.Warn("a read failed", "file", "/"+file.Name, "offset", off, "error", err)
	if errors.Is(err, fs.ErrPermission) {
		return gofuse.EACCES
	}
	return gofuse.EIO
}
