package fuse

import (
	"strings"

	"github.com/granary-oci/granary/toc"
)

// nodes are the files of a tree, by the numbers that the kernel knows them by: the
// position of a file's first name in the tree, from 1, which is the root's.
//
// It takes some 20 bytes for each file of several names, and for each directory that
// has directories in it.
type nodes struct {
	tree    *toc.Tree
	first   map[uint64]uint32 // by what the tree calls a file of several names
	folders map[uint64]uint32 // by number of a directory: how many are in it
	files   uint64            // each once
	content int64             // bytes that the files' extents hold, each file once
	xattrs  bool              // any of them has extended attributes
}

// newNodes looks at all of a tree for what it does not say of a single file.
func newNodes(tree *toc.Tree) *nodes {
	n := &nodes{tree: tree, first: make(map[uint64]uint32), folders: make(map[uint64]uint32)}
	for i := range tree.Len() {
		f := tree.At(i)
		if f.Links > 1 {
			if _, again := n.first[f.Inode]; again {
				continue
			}
			n.first[f.Inode] = uint32(i + 1)
		}
		n.files++
		n.content += held(&f)
		n.xattrs = n.xattrs || len(f.Xattrs) > 0
		if f.Type == toc.Directory && i > 0 {
			n.folders[n.parent(f.Name)]++
		}
	}
	return n
}

// file returns what has a number.
func (n *nodes) file(number uint64) (f toc.File, ok bool) {
	if number == 0 || number > uint64(n.tree.Len()) {
		return f, false
	}
	return n.tree.At(int(number - 1)), true
}

// number returns the number of the file at a position of the tree.
func (n *nodes) number(position int, f *toc.File) uint64 {
	if f.Links > 1 {
		return uint64(n.first[f.Inode])
	}
	return uint64(position + 1)
}

// links returns the number of a file's names; a directory is named by its parent,
// itself, and each directory in it.
func (n *nodes) links(number uint64, f *toc.File) uint32 {
	if f.Type == toc.Directory {
		return 2 + n.folders[number]
	}
	return uint32(f.Links)
}

// parent returns the number of the directory that a name is in; the root is in itself.
func (n *nodes) parent(name string) uint64 {
	i, _ := n.tree.Find(name[:max(0, strings.LastIndexByte(name, '/'))])
	return uint64(i + 1)
}

// maxName is the length of the longest name, in bytes, that programs can use: NAME_MAX.
const maxName = 255

// shown reports whether programs see a file: not if its name is too long, as it could not
// be unpacked, nor if it is a hardlink to what another layer has.
func shown(f *toc.File) bool { return len(f.Base()) <= maxName && f.Type != toc.Hardlink }

// lookup returns the position of what a directory has under a name.
func (n *nodes) lookup(dir *toc.File, name string) (position int, ok bool) {
	if dir.Type != toc.Directory || strings.IndexByte(name, '/') >= 0 {
		return 0, false
	}
	if dir.Name != "" {
		name = dir.Name + "/" + name
	}
	return n.tree.Find(name)
}

// held returns how many bytes of a file its extents hold. The rest are holes.
func held(f *toc.File) (size int64) {
	for _, x := range f.Extents {
		size += x.Size
	}
	return size
}
