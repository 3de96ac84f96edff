package fuse

import (
	"bytes"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// FuzzMountedTables mounts two layers by tables as a node answers with them, and does what
// the kernel does.
func FuzzMountedTables(f *testing.F) {
	entries := func(all string) []byte { return []byte(`{"version":1,"entries":[` + all + `]}`) }
	base := entries(`{"name":"d","type":"dir"},{"name":"d/f","type":"reg","size":10,"offset":100,"chunkSize":4,"endOffset":400},{"type":"chunk","name":"d/f","chunkOffset":4,"chunkType":"zeros"},{"name":"s","type":"symlink","linkName":"d/f"}`)
	f.Add(base, entries(`{"name":"d/.wh.f","type":"reg"},{"name":"d/g","type":"hardlink","linkName":"s"}`))
	f.Add(base, entries(`{"name":"d/h","type":"hardlink","linkName":"d/f"},{"name":"d/again","type":"hardlink","linkName":"d/h"},{"name":"s","type":"dir","xattrs":{"user.a":"AA=="}},{"name":"s/.wh..wh..opq","type":"reg"}`))
	f.Add(base, entries(`{"name":"d","type":"char","devMajor":1,"devMinor":3},{"name":"\udc80","type":"fifo"}`))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		var layers []*toc.Layer
		for _, text := range [][]byte{lower, upper} {
			table, err := toc.DecodeJSON(bytes.NewReader(text), 1000)
			if err != nil {
				return
			}
			layers = append(layers, &toc.Layer{TOC: table})
		}
		tree, err := toc.Overlay(layers)
		if err != nil {
			return
		}
		fsys, err := New(Config{Tree: tree, Contents: new(pattern)})
		if err != nil {
			t.Fatal(err)
		}
		u := &user{T: t, fs: fsys}
		u.visit(1)
		if u.names >= tree.Len() {
			t.Errorf("%d names are listed of %d", u.names, tree.Len())
		}
	})
}

// user looks at all that it finds.
type user struct {
	*testing.T
	fs    *FileSystem
	names int
}

func (u *user) visit(number uint64) {
	var attr gofuse.AttrOut
	if s := u.fs.GetAttr(nil, &gofuse.GetAttrIn{InHeader: gofuse.InHeader{NodeId: number}}, &attr); !s.Ok() || attr.Nlink == 0 {
		u.Fatalf("%d: %d names, %v", number, attr.Nlink, s)
	}
	header := &gofuse.InHeader{NodeId: number}
	_, _ = u.fs.ListXAttr(nil, header, make([]byte, 100))
	switch attr.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		u.list(number)
	case unix.S_IFLNK:
		_, _ = u.fs.Readlink(nil, header)
	case unix.S_IFREG:
		u.read(number, attr.Size)
	}
}

// list looks into a directory.
func (u *user) list(number uint64) {
	found := make(map[string]uint64)
	u.fs.list(&gofuse.ReadIn{InHeader: gofuse.InHeader{NodeId: number}}, func(e gofuse.DirEntry, _ *toc.File) bool {
		if _, again := found[e.Name]; again {
			u.Errorf("%q is listed twice", e.Name)
		}
		found[e.Name] = e.Ino
		return true
	})
	for name, ino := range found {
		if name == "." || name == ".." {
			continue
		}
		u.names++
		var out gofuse.EntryOut
		if s := u.fs.Lookup(nil, &gofuse.InHeader{NodeId: number}, name, &out); !s.Ok() || out.NodeId != ino || out.NodeId == number {
			u.Fatalf("%q is listed as %d, and is %d, %v", name, ino, out.NodeId, s)
		}
		u.visit(out.NodeId)
	}
}

// read reads a file at its beginning and its end, and finds what is in it.
func (u *user) read(number, size uint64) {
	for _, off := range []uint64{0, size / 2, max(size, 100) - 100} {
		buf := make([]byte, 4096)
		got, s := u.fs.Read(nil, &gofuse.ReadIn{InHeader: gofuse.InHeader{NodeId: number}, Offset: off, Size: uint32(len(buf))}, buf)
		if want := min(size-min(size, off), uint64(len(buf))); !s.Ok() || uint64(got.Size()) != want {
			u.Errorf("at %d of %d: %v, want %d bytes", off, size, s, want)
		}
		for _, whence := range []uint32{unix.SEEK_DATA, unix.SEEK_HOLE} {
			var out gofuse.LseekOut
			s := u.fs.Lseek(nil, &gofuse.LseekIn{InHeader: gofuse.InHeader{NodeId: number}, Offset: off, Whence: whence}, &out)
			if s.Ok() && (out.Offset < off || out.Offset > size) {
				u.Errorf("from %d of %d it seeks to %d", off, size, out.Offset)
			}
		}
	}
}
