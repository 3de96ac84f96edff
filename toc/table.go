package toc

import (
	"fmt"
	"iter"
	"sort"
	"strings"
	"time"
)

// TOC is the table of contents of one layer. It is immutable.
//
// It takes 64 bytes for each entry and 72 for each extent, beside the names; what
// few entries have is kept apart.
type TOC struct {
	records []record // sorted by name
	extents []Extent
	links   []string            // targets of links
	xattrs  []map[string]string // each set of attributes once
	whole   map[uint32]Digest   // by first extent: of files of several
}

// record is an entry without what few entries have.
type record struct {
	name    string
	size    int64 // of a file, or a device's numbers
	seconds int64
	nanos   uint32
	uid     uint32
	gid     uint32
	link    uint32 // position in links, from 1
	xattrs  uint32 // position in xattrs, from 1
	first   uint32 // position in extents
	count   uint32 // of extents
	mode    uint16
	typ     Type
}

// Len returns the number of entries, the root included.
func (t *TOC) Len() int { return len(t.records) }

// At returns the entry at position i, 0 ≤ i < Len, in the order of names.
func (t *TOC) At(i int) Entry {
	r := &t.records[i]
	e := Entry{Name: r.name, Type: r.typ, Mode: uint32(r.mode), UID: r.uid, GID: r.gid, ModTime: time.Unix(r.seconds, int64(r.nanos)).UTC()}
	switch r.typ {
	case Regular:
		e.Size = r.size
	case CharDevice, BlockDevice:
		e.Major, e.Minor = uint32(r.size>>32), uint32(r.size)
	}
	if r.link > 0 {
		e.Link = t.links[r.link-1]
	}
	if r.xattrs > 0 {
		e.Xattrs = t.xattrs[r.xattrs-1]
	}
	if r.count > 0 {
		e.Extents = t.extents[r.first : r.first+r.count : r.first+r.count]
		if d, ok := t.whole[r.first]; ok {
			e.Digest = d
		} else if x := e.Extents[0]; r.count == 1 && x.Offset == 0 && x.Size == r.size {
			e.Digest = x.Digest
		}
	}
	return e
}

// Find returns the position of the entry of a clean name.
func (t *TOC) Find(name string) (i int, ok bool) {
	i = t.search(name)
	return i, i < len(t.records) && t.records[i].name == name
}

// search returns the position of the first entry whose name is not below name.
func (t *TOC) search(name string) int {
	return sort.Search(len(t.records), func(i int) bool { return t.records[i].name >= name })
}

// Lookup returns the entry of a clean name.
func (t *TOC) Lookup(name string) (e Entry, ok bool) {
	i, ok := t.Find(name)
	if !ok {
		return e, false
	}
	return t.At(i), true
}

// All returns the entries, by name.
func (t *TOC) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range t.records {
			if !yield(t.At(i)) {
				return
			}
		}
	}
}

// children returns the positions, from one on, of what is directly in a directory, by
// name, in a list of n names that is sorted.
func children(dir string, start, n int, name func(int) string) iter.Seq[int] {
	prefix := dir + "/"
	if dir == "" {
		prefix = ""
	}
	from := func(s string) int { return sort.Search(n, func(i int) bool { return name(i) >= s }) }
	return func(yield func(int) bool) {
		for i := max(start, from(prefix)); i < n && strings.HasPrefix(name(i), prefix); {
			rest := name(i)[len(prefix):]
			if slash := strings.IndexByte(rest, '/'); slash >= 0 {
				i = from(prefix + rest[:slash] + "0") // '0' follows '/': past all that is in it
				continue
			}
			if rest != "" && !yield(i) {
				return
			}
			i++
		}
	}
}

// check reports what of an entry cannot be.
func (e *Entry) check() error {
	switch {
	case len(e.Name) > MaxName || len(e.Link) > MaxName:
		return fmt.Errorf("%w: a name or target of more than %d bytes", ErrLimit, MaxName)
	case strings.Count(e.Name, "/") >= MaxDepth:
		return fmt.Errorf("%w: a name of more than %d elements", ErrLimit, MaxDepth)
	case strings.IndexByte(e.Name, 0) >= 0 || strings.IndexByte(e.Link, 0) >= 0:
		return fmt.Errorf("%w: a zero byte in a name or target", ErrMalformed)
	case e.Type < Directory || e.Type > FIFO:
		return fmt.Errorf("%w: %v", ErrMalformed, e.Type)
	case e.Size < 0 || e.Size > MaxFileSize:
		return fmt.Errorf("%w: a size of %d bytes", ErrLimit, e.Size)
	case e.Type != Regular && (e.Size != 0 || len(e.Extents) > 0):
		return fmt.Errorf("%w: a %v with content", ErrMalformed, e.Type)
	case (e.Type == Symlink || e.Type == Hardlink) && e.Link == "":
		return fmt.Errorf("%w: a link without a target", ErrMalformed)
	}
	size := 0
	for k, v := range e.Xattrs {
		size += len(k) + len(v)
	}
	if size > MaxXattrs {
		return fmt.Errorf("%w: extended attributes of %d bytes", ErrLimit, size)
	}
	return e.checkExtents()
}

func (e *Entry) checkExtents() error {
	end := int64(0)
	for _, x := range e.Extents {
		switch {
		case x.Offset < end || x.Size <= 0 || x.Size > e.Size-x.Offset:
			return fmt.Errorf("%w: an extent [%d+%d] of a file of %d bytes", ErrMalformed, x.Offset, x.Size, e.Size)
		case x.Start < 0 || x.End < x.Start || x.Inner < 0:
			return fmt.Errorf("%w: an extent at %d to %d, %d bytes in", ErrMalformed, x.Start, x.End, x.Inner)
		}
		end = x.Offset + x.Size
	}
	return nil
}
