package erofs

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/granary-oci/granary/toc"
)

// node is a name for an inode.
type node struct {
	name   string
	number uint64
}

// listing is a directory whose entries are to be read.
type listing struct {
	name    string
	extents []toc.Extent
}

// walker makes the table of an image, a level of its tree at a time.
type walker struct {
	*image
	table toc.Builder
	first map[uint64]string   // of inodes that have several names
	dirs  map[uint64]struct{} // that were met
	met   int                 // names
}

func (im *image) walk() (*toc.TOC, error) {
	w := &walker{image: im, first: make(map[uint64]string), dirs: make(map[uint64]struct{})}
	for level := []node{{"", im.root}}; len(level) > 0; {
		dirs, err := w.addLevel(level)
		if err != nil {
			return nil, err
		}
		if level, err = w.list(dirs); err != nil {
			return nil, err
		}
	}
	return w.table.Done()
}

// addLevel adds entries to the table, and returns the directories among them.
func (w *walker) addLevel(level []node) (dirs []listing, err error) {
	slices.SortFunc(level, func(x, y node) int {
		return cmp.Or(cmp.Compare(x.number, y.number), strings.Compare(x.name, y.name))
	})
	var plan []int64
	for _, n := range level {
		at, err := w.inodeAt(n.number)
		if err != nil {
			return nil, fmt.Errorf("entry %.200q: %w", n.name, err)
		}
		plan = append(plan, at/pieceSize)
	}
	w.pieces.want(slices.Compact(plan))
	for _, n := range level {
		dir, err := w.add(n)
		if err != nil {
			return nil, fmt.Errorf("entry %.200q: %w", n.name, err)
		}
		if dir != nil {
			dirs = append(dirs, *dir)
		}
	}
	return dirs, nil
}

// add adds an entry, and returns what to list if it is a directory.
func (w *walker) add(n node) (*listing, error) {
	in, err := w.readInode(n.number)
	if err != nil {
		return nil, err
	}
	e := &in.entry
	e.Name = n.name
	if e.Type == socket {
		return nil, nil
	}
	if err := w.readAttrs(in); err != nil {
		return nil, err
	}
	var extents []toc.Extent
	switch e.Type {
	case toc.Directory, toc.Regular, toc.Symlink:
		if extents, err = w.extents(in); err != nil {
			return nil, err
		}
	}
	switch e.Type {
	case toc.Directory:
		if _, ok := w.dirs[n.number]; ok {
			return nil, fmt.Errorf("%w: a directory of two names", toc.ErrMalformed)
		}
		w.dirs[n.number] = struct{}{}
	case toc.Regular:
		e.Extents = extents
	case toc.Symlink:
		if e.Link, err = w.target(in, extents); err != nil {
			return nil, err
		}
	}
	w.link(n, in)
	if err := w.table.Add(*e); err != nil || e.Type != toc.Directory {
		return nil, err
	}
	return &listing{n.name, extents}, nil
}

// link makes an entry a hard link if its inode has an entry already. Whiteouts, of
// which overlayfs gives one inode many names, stay what they are.
func (w *walker) link(n node, in *inode) {
	e := &in.entry
	if e.Type == toc.Directory || in.links == 1 || e.Whiteout() {
		return
	}
	if first, ok := w.first[n.number]; ok {
		*e = toc.Entry{Name: n.name, Type: toc.Hardlink, Link: first}
		return
	}
	w.first[n.number] = n.name
}

func (w *walker) target(in *inode, extents []toc.Extent) (string, error) {
	if in.size > toc.MaxName {
		return "", fmt.Errorf("%w: a target of %d bytes", toc.ErrLimit, in.size)
	}
	var target []byte
	for _, x := range extents {
		p, err := w.bytes(x.Start, x.Size)
		if err != nil {
			return "", err
		}
		target = append(target, p...)
	}
	if int64(len(target)) != in.size {
		return "", fmt.Errorf("%w: a target with holes", toc.ErrMalformed)
	}
	return string(target), nil
}

// list returns what is in directories.
func (w *walker) list(dirs []listing) (level []node, err error) {
	slices.SortFunc(dirs, func(x, y listing) int {
		return cmp.Or(cmp.Compare(x.begin(), y.begin()), strings.Compare(x.name, y.name))
	})
	w.pieces.want(planned(dirs))
	for _, d := range dirs {
		if level, err = w.listOne(level, d); err != nil {
			return nil, fmt.Errorf("directory %.200q: %w", d.name, err)
		}
	}
	return level, nil
}

func (d *listing) begin() int64 {
	if len(d.extents) == 0 {
		return 0
	}
	return d.extents[0].Start
}

// planned returns the pieces that directories are in, which are sorted by where they
// begin. Where one goes on elsewhere, it does so behind its inode, which was read.
func planned(dirs []listing) []int64 {
	var plan []int64
	next := int64(0)
	for _, d := range dirs {
		if len(d.extents) == 0 {
			continue
		}
		x := d.extents[0]
		for at := max(next, x.Start/pieceSize); at*pieceSize < x.End; at++ {
			plan = append(plan, at)
			next = at + 1
		}
	}
	return plan
}

// listOne appends what is in a directory, a block at a time.
func (w *walker) listOne(level []node, d listing) ([]node, error) {
	block := int64(1) << w.blockBits
	last := ""
	for _, x := range d.extents {
		for off := int64(0); off < x.Size; off += block {
			p, err := w.bytes(x.Start+off, min(block, x.Size-off))
			if err != nil {
				return nil, err
			}
			if level, last, err = w.listBlock(level, d.name, p, last); err != nil {
				return nil, err
			}
		}
	}
	return level, nil
}

// A directory's block begins with entries of 12 bytes (struct erofs_dirent): the
// inode's number (u64), and the name's offset in the block (u16), which in the first
// one tells how many there are. Names follow, each up to the next, the last up to a
// zero or the block's end. All of a directory's names ascend.
const direntSize = 12

// listBlock appends what is in a block of a directory, and returns its last name.
func (w *walker) listBlock(level []node, dir string, p []byte, last string) ([]node, string, error) {
	if len(p) < direntSize {
		return nil, "", fmt.Errorf("%w: a block of %d bytes", toc.ErrMalformed, len(p))
	}
	names := int(le.Uint16(p[8:]))
	if names < direntSize || names%direntSize != 0 || names > len(p) {
		return nil, "", fmt.Errorf("%w: names at %d of %d bytes", toc.ErrMalformed, names, len(p))
	}
	for at := 0; at < names; at += direntSize {
		start, end := int(le.Uint16(p[at+8:])), len(p)
		if at+direntSize < names {
			end = int(le.Uint16(p[at+direntSize+8:]))
		}
		if start < names || end < start || end > len(p) {
			return nil, "", fmt.Errorf("%w: a name at %d to %d of %d bytes", toc.ErrMalformed, start, end, len(p))
		}
		name := p[start:end]
		if zero := bytes.IndexByte(name, 0); zero >= 0 {
			name = name[:zero]
		}
		if string(name) <= last || bytes.IndexByte(name, '/') >= 0 {
			return nil, "", fmt.Errorf("%w: the name %q after %q", toc.ErrMalformed, name, last)
		}
		if last = string(name); last == "." || last == ".." {
			continue
		}
		if err := w.meet(len(dir) + 1 + len(name)); err != nil {
			return nil, "", err
		}
		level = append(level, node{join(dir, last), le.Uint64(p[at:])})
	}
	return level, last, nil
}

// meet counts a name of n bytes.
func (w *walker) meet(n int) error {
	if w.met++; w.met > toc.MaxEntries {
		return fmt.Errorf("%w: more than %d entries", toc.ErrLimit, toc.MaxEntries)
	}
	if n > toc.MaxName+1 {
		return fmt.Errorf("%w: a name of more than %d bytes", toc.ErrLimit, toc.MaxName)
	}
	return w.keep(n)
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
