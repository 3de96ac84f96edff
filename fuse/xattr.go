package fuse

import (
	"maps"
	"slices"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// GetXAttr returns the size of an extended attribute, which is in dest if that has the
// room, and ERANGE otherwise. The kernel remembers no attribute, and programs ask for some
// of every file that they list or run: where no file has any, it is told to ask no more.
func (f *FileSystem) GetXAttr(_ <-chan struct{}, in *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	if !f.xattrs {
		return 0, gofuse.ENOSYS
	}
	file, ok := f.file(in.NodeId)
	if !ok {
		return 0, gofuse.ENOENT
	}
	value, ok := file.Xattrs[name]
	if !ok {
		return 0, gofuse.ENODATA
	}
	return give(dest, value)
}

// ListXAttr is GetXAttr for the names of all attributes, each with a zero byte behind.
func (f *FileSystem) ListXAttr(_ <-chan struct{}, in *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	file, ok := f.file(in.NodeId)
	if !ok {
		return 0, gofuse.ENOENT
	}
	var names string
	for _, name := range slices.Sorted(maps.Keys(file.Xattrs)) {
		names += name + "\x00"
	}
	return give(dest, names)
}

func give(dest []byte, value string) (uint32, gofuse.Status) {
	if len(value) > len(dest) {
		return uint32(len(value)), gofuse.ERANGE
	}
	return uint32(copy(dest, value)), gofuse.OK
}
