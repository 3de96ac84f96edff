package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// OpenDir says that directories are not opened: the kernel asks no more, and keeps what
// it has listed.
func (f *FileSystem) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

// ReadDir lists a directory.
func (f *FileSystem) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.list(in, func(e gofuse.DirEntry, _ *toc.File) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists a directory with what each name stands for, which the kernel would
// ask next.
func (f *FileSystem) ReadDirPlus(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.list(in, func(e gofuse.DirEntry, file *toc.File) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && file != nil { // the kernel knows "." and ".."
			f.entry(e.Ino, file, entry)
		}
		return entry != nil
	})
}

// Where a listing goes on: after ".", after "..", or after what is at position i of the
// tree, at i+afterFirst.
const (
	afterSelf = iota + 1
	afterParent
	afterFirst
)

// list adds what is in a directory, from where the listing goes on, until add says that
// there is no room.
func (f *FileSystem) list(in *gofuse.ReadIn, add func(gofuse.DirEntry, *toc.File) bool) gofuse.Status {
	dir, ok := f.file(in.NodeId)
	if !ok || dir.Type != toc.Directory {
		return gofuse.ENOTDIR
	}
	if in.Offset < afterSelf && !add(gofuse.DirEntry{Name: ".", Ino: in.NodeId, Mode: unix.S_IFDIR, Off: afterSelf}, nil) {
		return gofuse.OK
	}
	if in.Offset < afterParent && !add(gofuse.DirEntry{Name: "..", Ino: f.parent(dir.Name), Mode: unix.S_IFDIR, Off: afterParent}, nil) {
		return gofuse.OK
	}
	start := min(max(in.Offset, afterParent)-afterParent, uint64(f.tree.Len()))
	for i := range f.tree.Positions(dir.Name, int(start)) {
		file := f.tree.At(i)
		if !shown(&file) {
			continue
		}
		if !add(gofuse.DirEntry{Name: file.Base(), Ino: f.number(i, &file), Mode: kinds[file.Type], Off: uint64(i) + afterFirst}, &file) {
			break
		}
	}
	return gofuse.OK
}
