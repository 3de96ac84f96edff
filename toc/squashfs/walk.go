package squashfs

import (
	"bytes"
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// walker makes the table of an image, a level of its tree at a time.
type walker struct {
	sb     superblock
	m      *metadata
	table  toc.Builder
	sets   map[uint32]map[string]string // of attributes, by index
	first  map[uint64]string            // names of inodes that have several
	dirs   map[uint64]struct{}          // that were met
	met    int                          // names, of toc.MaxEntries
	text   int                          // bytes of names and attributes, of toc.MaxText
	blocks int64                        // of files, of toc.MaxExtents
}

func newWalker(sb superblock, m *metadata) *walker {
	return &walker{sb: sb, m: m, sets: make(map[uint32]map[string]string), first: make(map[uint64]string), dirs: make(map[uint64]struct{})}
}

// node is a name for an inode, or the listing of a directory of that name.
type node struct {
	name string
	ref  uint64
	list listing
}

func (w *walker) walk() (*toc.TOC, error) {
	for level := []node{{ref: w.sb.root}}; len(level) > 0; {
		dirs, err := w.addLevel(level)
		if err != nil {
			return nil, err
		}
		level = nil
		for _, d := range dirs {
			if level, err = w.list(level, d); err != nil {
				return nil, fmt.Errorf("directory %.200q: %w", d.name, err)
			}
		}
	}
	return w.table.Done()
}

// addLevel adds entries to the table, and returns the directories among them.
func (w *walker) addLevel(level []node) (dirs []node, err error) {
	for _, n := range level {
		in, err := w.add(n)
		if err != nil {
			return nil, fmt.Errorf("entry %.200q: %w", n.name, err)
		}
		if in.entry.Type == toc.Directory {
			n.list = in.list
			dirs = append(dirs, n)
		}
	}
	return dirs, nil
}

func (w *walker) add(n node) (*inode, error) {
	in, err := w.readInode(n.ref)
	if err != nil || in.entry.Type == socket {
		return in, err
	}
	e := &in.entry
	e.Name = n.name
	if e.Xattrs, err = w.attrs(in.attrs); err != nil {
		return nil, err
	}
	if e.Type == toc.Directory {
		if _, ok := w.dirs[n.ref]; ok {
			return nil, fmt.Errorf("%w: a directory of two names", toc.ErrMalformed)
		}
		w.dirs[n.ref] = struct{}{}
	}
	w.link(n, in)
	return in, w.table.Add(*e)
}

// link makes an entry a hard link if its inode has an entry already. Whiteouts, of
// which overlayfs gives one inode many names, stay what they are.
func (w *walker) link(n node, in *inode) {
	e := &in.entry
	if e.Type == toc.Directory || in.links == 1 || e.Whiteout() {
		return
	}
	if first, ok := w.first[n.ref]; ok {
		*e = toc.Entry{Name: n.name, Type: toc.Hardlink, Link: first}
		return
	}
	w.first[n.ref] = n.name
}

// A listing is runs of entries, each run with a header of 12 bytes (struct
// squashfs_dir_header): how many there are, less one (u32), and the block that their
// inodes are in (u32). An entry is 8 bytes and a name (struct squashfs_dir_entry):
// the offset of the inode (u16) in that block, and at 6 the name's length, less one
// (u16). All of a directory's names ascend.
const (
	runHeader = 12
	maxRun    = 256
	direntry  = 8
)

// list appends what is in a directory.
func (w *walker) list(level []node, d node) ([]node, error) {
	left := d.list.size
	if left == 0 {
		return level, nil
	}
	c, err := w.m.at(w.sb.dirs, d.list.ref)
	if err != nil {
		return nil, err
	}
	for last := ""; left > 0; {
		p, err := c.next(runHeader)
		if err != nil {
			return nil, err
		}
		left -= runHeader
		count, block := le.Uint32(p), le.Uint32(p[4:])
		if count >= maxRun {
			return nil, fmt.Errorf("%w: a run of %d entries", toc.ErrMalformed, count)
		}
		for range count + 1 {
			n, err := w.readName(c, d.name, block, &last)
			if err != nil {
				return nil, err
			}
			level = append(level, n)
			left -= direntry + int64(len(last))
		}
	}
	if left < 0 {
		return nil, fmt.Errorf("%w: it is longer than it says", toc.ErrMalformed)
	}
	return level, nil
}

// readName reads an entry of a directory, the one before which was last.
func (w *walker) readName(c *cursor, dir string, block uint32, last *string) (n node, err error) {
	p, err := c.next(direntry)
	if err != nil {
		return n, err
	}
	ref := uint64(block)<<16 | uint64(le.Uint16(p))
	name, err := c.next(int(le.Uint16(p[6:])) + 1)
	if err != nil {
		return n, err
	}
	if string(name) <= *last || bytes.ContainsAny(name, "/\x00") || string(name) == "." || string(name) == ".." {
		return n, fmt.Errorf("%w: the name %.300q after %.300q", toc.ErrMalformed, name, *last)
	}
	*last = string(name)
	return node{name: join(dir, *last), ref: ref}, w.meet(len(dir) + 1 + len(name))
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

// keep counts n bytes of names and attributes, which stay in memory.
func (w *walker) keep(n int) error {
	if w.text += n; w.text > toc.MaxText {
		return fmt.Errorf("%w: names and attributes of more than %d bytes", toc.ErrLimit, toc.MaxText)
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
