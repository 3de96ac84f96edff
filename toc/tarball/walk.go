package tarball

import (
	"fmt"
	"hash"
	"io"
	"math"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/tarhead"
)

// walker goes through the headers of a tar, and makes a table of them.
type walker struct {
	tape  *tape
	table toc.Builder
	// place says where the content is that the tape is at, and passes over it. The
	// writer, unless it is nil, is to see it.
	place func(x *toc.Extent, whole io.Writer) error
	// whole is what the content of all of a file is hashed with, if that is wanted.
	whole hash.Hash
}

// meta is what entries say of the one after them.
type meta struct {
	records    records
	name, link string
}

func (w *walker) walk() (*toc.TOC, error) {
	for {
		switch err := w.next(); {
		case err == io.EOF:
			return w.table.Done()
		case err == io.ErrUnexpectedEOF: // and no reader's own, which says more
			return nil, fmt.Errorf("tar: at byte %d: %w: %w", w.tape.pos, toc.ErrMalformed, err)
		case err != nil:
			return nil, fmt.Errorf("tar: at byte %d: %w", w.tape.pos, err)
		}
	}
}

// next adds an entry. It is io.EOF at the end of the archive.
func (w *walker) next() error {
	var m meta
	for {
		h, err := w.header()
		if err != nil {
			return err
		}
		switch h.flag {
		case 'x', 'L', 'K':
			if err := w.read(h, &m); err != nil {
				return err
			}
		case 'g':
			// What it says is for all entries, and heeded by none of the runtimes.
			return w.tape.skip(h.size)
		default:
			return w.add(h, m)
		}
	}
}

// header reads the next header. Two blocks of zeros are the end of the archive, and
// so is the end of the tape between blocks.
func (w *walker) header() (header, error) {
	if err := w.tape.align(); err != nil {
		return header{}, err
	}
	first := w.tape.pos == 0
	b := new(block)
	if err := w.tape.fill(b[:]); err != nil {
		return header{}, err
	}
	if b.zero() {
		if err := w.tape.fill(b[:]); err != nil {
			return header{}, err
		}
		if b.zero() {
			return header{}, io.EOF
		}
		return header{}, fmt.Errorf("%w: a block of zeros between entries", toc.ErrMalformed)
	}
	if !b.valid() {
		if first {
			return header{}, toc.ErrFormat
		}
		return header{}, fmt.Errorf("%w: a header with a wrong checksum", toc.ErrMalformed)
	}
	return b.parse()
}

// read reads an entry that is about the next one.
func (w *walker) read(h header, m *meta) error {
	p, err := w.tape.special(h.size)
	if err != nil {
		return err
	}
	switch h.flag {
	case 'x':
		m.records, err = parseRecords(p)
	case 'L':
		m.name = tarhead.Text(p)
	case 'K':
		m.link = tarhead.Text(p)
	}
	return err
}

// add adds the entry of a header, with what was said of it before.
func (w *walker) add(h header, m meta) error {
	if err := m.records.amend(&h); err != nil {
		return err
	}
	if m.name != "" {
		h.name = m.name
	}
	if m.link != "" {
		h.link = m.link
	}
	if h.flag == 0 && h.name != "" && h.name[len(h.name)-1] == '/' {
		h.flag = '5' // so V7 writes a directory
	}
	e, err := h.entry()
	if err != nil {
		return err
	}
	e.Xattrs = m.records.xattrs()
	if e.Type == toc.Regular {
		runs, err := w.runs(&h, m.records)
		if err != nil {
			return err
		}
		e.Name, e.Size = h.name, h.size
		if err := w.content(&e, runs); err != nil {
			return err
		}
	}
	return w.table.Add(e)
}

// content passes over a file's content, and gives the entry its extents. A file that
// is one extent is hashed as that alone, and one with holes only by extent: hashing
// the holes that a small header claims could take for ever.
func (w *walker) content(e *toc.Entry, runs []run) error {
	if e.Size > toc.MaxFileSize {
		return fmt.Errorf("%w: a file of %d bytes", toc.ErrLimit, e.Size)
	}
	var whole io.Writer
	if w.whole != nil && len(runs) == 1 && runs[0].size == e.Size && e.Size > PieceSize {
		w.whole.Reset()
		whole = w.whole
	}
	for _, r := range runs {
		for r.size > 0 {
			x := toc.Extent{Offset: r.offset, Size: min(r.size, PieceSize)}
			if err := w.place(&x, whole); err != nil {
				return err
			}
			if len(e.Extents) >= toc.MaxExtents {
				return fmt.Errorf("%w: more than %d extents", toc.ErrLimit, toc.MaxExtents)
			}
			e.Extents = append(e.Extents, x)
			r.offset += x.Size
			r.size -= x.Size
		}
	}
	if whole != nil {
		w.whole.Sum(e.Digest[:0])
	}
	return nil
}

var types = map[byte]toc.Type{
	0: toc.Regular, '0': toc.Regular, '7': toc.Regular, 'S': toc.Regular,
	'1': toc.Hardlink, '2': toc.Symlink, '3': toc.CharDevice, '4': toc.BlockDevice, '5': toc.Directory, '6': toc.FIFO,
}

// entry returns the header's entry, as yet without size and content.
func (h *header) entry() (e toc.Entry, err error) {
	typ, ok := types[h.flag]
	if !ok {
		return e, fmt.Errorf("%w: an entry of type %q", toc.ErrMalformed, h.flag)
	}
	e = toc.Entry{Name: h.name, Type: typ, Mode: uint32(h.mode & 0o7777), UID: uint32(h.uid), GID: uint32(h.gid), ModTime: h.modTime}
	numbers := []int64{h.uid, h.gid}
	switch typ {
	case toc.Symlink, toc.Hardlink:
		e.Link = h.link
	case toc.CharDevice, toc.BlockDevice:
		e.Major, e.Minor = uint32(h.major), uint32(h.minor)
		numbers = append(numbers, h.major, h.minor)
	}
	for _, n := range numbers {
		if n < 0 || n > math.MaxUint32 {
			return e, fmt.Errorf("%w: an owner or device %d", toc.ErrMalformed, n)
		}
	}
	return e, nil
}
