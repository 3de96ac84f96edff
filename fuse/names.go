package fuse

import (
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// keep is for how long the kernel is told to keep what it knows.
const keep = time.Hour

// Lookup says what a directory has under a name. That it has nothing is worth keeping
// too: programs look for their libraries in many places.
func (f *FileSystem) Lookup(_ <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, ok := f.file(in.NodeId)
	if !ok {
		return gofuse.ENOENT
	}
	out.SetEntryTimeout(keep)
	i, ok := f.lookup(&dir, name)
	if !ok {
		return gofuse.OK
	}
	if found := f.tree.At(i); shown(&found) {
		f.entry(f.number(i, &found), &found, out)
	}
	return gofuse.OK
}

// Forget costs nothing, for nothing is remembered.
func (f *FileSystem) Forget(uint64, uint64) {}

// GetAttr says what a file is.
func (f *FileSystem) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	file, ok := f.file(in.NodeId)
	if !ok {
		return gofuse.ENOENT
	}
	out.SetTimeout(keep)
	f.attr(in.NodeId, &file, &out.Attr)
	return gofuse.OK
}

// Readlink says where a symlink leads.
func (f *FileSystem) Readlink(_ <-chan struct{}, in *gofuse.InHeader) ([]byte, gofuse.Status) {
	file, ok := f.file(in.NodeId)
	switch {
	case !ok || file.Type != toc.Symlink:
		return nil, gofuse.EINVAL
	case len(file.Link) >= toc.MaxName: // with its end it is longer than PATH_MAX
		return nil, gofuse.Status(unix.ENAMETOOLONG)
	}
	return []byte(file.Link), gofuse.OK
}

// StatFs says that all there is is full.
func (f *FileSystem) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	*out = gofuse.StatfsOut{
		Blocks: uint64(f.content+blockSize-1) / blockSize, Bsize: blockSize, Frsize: blockSize,
		Files: f.files, NameLen: maxName,
	}
	return gofuse.OK
}

// entry says what a name stands for.
func (f *FileSystem) entry(number uint64, file *toc.File, out *gofuse.EntryOut) {
	out.NodeId = number
	out.SetEntryTimeout(keep)
	out.SetAttrTimeout(keep)
	f.attr(number, file, &out.Attr)
}

const (
	blockSize  = 4096
	sectorSize = 512 // of the unit that stat(2) counts blocks in
)

func (f *FileSystem) attr(number uint64, file *toc.File, out *gofuse.Attr) {
	*out = gofuse.Attr{
		Ino: number, Mode: kinds[file.Type] | file.Mode, Nlink: f.links(number, file),
		Owner: gofuse.Owner{Uid: file.UID, Gid: file.GID}, Blksize: blockSize,
	}
	switch file.Type {
	case toc.Directory:
		out.Size = blockSize
	case toc.Regular:
		out.Size, out.Blocks = uint64(file.Size), uint64(held(file)+sectorSize-1)/sectorSize
	case toc.Symlink:
		out.Size = uint64(len(file.Link))
	case toc.CharDevice, toc.BlockDevice:
		out.Rdev = uint32(unix.Mkdev(file.Major, file.Minor))
	}
	if file.ModTime.IsZero() { // a directory that no layer has an entry for
		return
	}
	seconds, nanos := uint64(file.ModTime.Unix()), uint32(file.ModTime.Nanosecond())
	out.Mtime, out.Mtimensec = seconds, nanos
	out.Ctime, out.Ctimensec = seconds, nanos
	out.Atime, out.Atimensec = seconds, nanos
}

// kinds are the types of files as modes have them.
var kinds = [...]uint32{
	toc.Directory: unix.S_IFDIR, toc.Regular: unix.S_IFREG, toc.Symlink: unix.S_IFLNK,
	toc.CharDevice: unix.S_IFCHR, toc.BlockDevice: unix.S_IFBLK, toc.FIFO: unix.S_IFIFO,
}
