package leads

import (
	"bytes"
	"encoding/binary"
	"io"
	"path"
	"strings"

	"github.com/granary-oci/granary/toc"
)

// Where things are in an object file: System V Application Binary Interface, chapters 4
// and 5 ("Object Files", "Program Loading and Dynamic Linking").
const (
	elfMagic = "\x7fELF"

	class64   = 2
	bigEndian = 2

	segmentLoad    = 1
	segmentDynamic = 2
	segmentInterp  = 3

	readable = 4 // flags of a segment that is neither written nor executed

	dynamicNeeded  = 1
	dynamicStrings = 5
	dynamicRpath   = 15
	dynamicRunpath = 29

	maxSegments = 256
	maxDynamic  = 64 << 10 // bytes of the dynamic section
	maxString   = 4096
	maxNeeded   = 256
	maxRunpath  = 16 // directories
)

// libraryDirs are where libraries are on most systems; others are learned from where an
// executable's interpreter is, and from libraries that are found.
var libraryDirs = []string{"/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"}

// loaderCache is read by glibc's interpreter before it looks for the first library.
const loaderCache = "/etc/ld.so.cache"

// object finds the libraries that an object file needs, and its interpreter.
func (s *search) object(r io.ReaderAt, size int64) {
	o, ok := readObject(r, size)
	if !ok {
		return
	}
	if s.loader(o.interp) {
		s.python()
	}
	var dirs []string
	origin := strings.NewReplacer("$ORIGIN", s.dir, "${ORIGIN}", s.dir)
	for dir := range strings.SplitSeq(o.runpath, ":") {
		if dir = origin.Replace(dir); dir != "" && len(dir) <= toc.MaxName && len(dirs) < maxRunpath {
			dirs = append(dirs, dir)
		}
	}
	dirs = append(dirs, s.learned(&s.libraries)...)
	dirs = append(append(dirs, libraryDirs...), s.dir)
	for _, name := range o.needed {
		s.library(name, dirs)
	}
	if strings.HasSuffix(s.base, extensionSuffix) {
		s.extension(r, o.constants)
	}
}

// loader adds the interpreter of executables, which loads the libraries that they need,
// and what it reads itself.
func (s *search) loader(name string) bool {
	file, ok := s.add(name)
	if ok {
		s.learn(&s.libraries, path.Dir("/"+file.Name))
		s.add(loaderCache)
	}
	return ok
}

// library adds the first library of a name that one of the directories has.
func (s *search) library(name string, dirs []string) {
	switch {
	case path.IsAbs(name):
		s.add(name)
		return
	case strings.Contains(name, "/"):
		s.add(path.Join(s.dir, name))
		return
	}
	for _, dir := range dirs {
		if _, ok := s.add(dir + "/" + name); ok {
			return
		}
	}
}

// object is what an object file says of others.
type object struct {
	interp    string
	needed    []string
	runpath   string
	constants []segment // that hold constants, among others those of text
}

// segment is a part of an object file, as its program header has it.
type segment struct {
	kind, flags           uint32
	offset, address, size int64
}

// image is an object file that is being read.
type image struct {
	io.ReaderAt
	order binary.ByteOrder
	wide  bool // of 64 bits
	size  int64
}

// word returns the number at an offset in p that is as wide as an address.
func (m *image) word(p []byte, narrow, wide int) int64 {
	if m.wide {
		return int64(m.order.Uint64(p[wide:]) & (1<<63 - 1))
	}
	return int64(m.order.Uint32(p[narrow:]))
}

// readObject reads what an object file of a size says of others.
func readObject(r io.ReaderAt, size int64) (o object, ok bool) {
	head := read(r, 0, 64)
	if len(head) < 64 {
		return o, false
	}
	m := &image{r, binary.LittleEndian, head[4] == class64, size}
	if head[5] == bigEndian {
		m.order = binary.BigEndian
	}
	all := m.segments(head)
	for _, s := range all {
		switch s.kind {
		case segmentInterp:
			o.interp = m.text(s.offset)
		case segmentDynamic:
			m.dynamic(s, all, &o)
		case segmentLoad:
			if s.flags == readable {
				o.constants = append(o.constants, s)
			}
		}
	}
	return o, true
}

// segments reads the program headers.
func (m *image) segments(head []byte) (all []segment) {
	at, each := m.word(head, 28, 32), int64(32)
	count := int64(m.order.Uint16(head[44:]))
	if m.wide {
		each, count = 56, int64(m.order.Uint16(head[56:]))
	}
	p := read(m, at, min(count, maxSegments)*each)
	for ; int64(len(p)) >= each; p = p[each:] {
		s := segment{kind: m.order.Uint32(p), flags: m.order.Uint32(p[24:]), offset: m.word(p, 4, 8), address: m.word(p, 8, 16), size: m.word(p, 16, 32)}
		if m.wide {
			s.flags = m.order.Uint32(p[4:])
		}
		if s.offset <= m.size && s.size <= m.size-s.offset {
			all = append(all, s)
		}
	}
	return all
}

// dynamic reads what the dynamic section says.
func (m *image) dynamic(s segment, all []segment, o *object) {
	width := 4
	if m.wide {
		width = 8
	}
	var needed []int64
	strings, runpath := int64(-1), int64(-1)
	for p := read(m, s.offset, min(s.size, maxDynamic)); len(p) >= 2*width; p = p[2*width:] {
		switch tag, value := m.word(p, 0, 0), m.word(p, 4, 8); tag {
		case dynamicNeeded:
			if len(needed) < maxNeeded {
				needed = append(needed, value)
			}
		case dynamicStrings:
			strings = offsetOf(value, all)
		case dynamicRpath, dynamicRunpath:
			runpath = value
		}
	}
	if strings < 0 {
		return
	}
	for _, at := range needed[:min(len(needed), maxNeeded-len(o.needed))] {
		if name := m.textIn(strings, at); name != "" {
			o.needed = append(o.needed, name)
		}
	}
	if runpath >= 0 {
		o.runpath = m.textIn(strings, runpath)
	}
}

// offsetOf returns where in the file an address is, or -1.
func offsetOf(address int64, all []segment) int64 {
	for _, s := range all {
		if s.kind == segmentLoad && address >= s.address && address-s.address < s.size {
			return s.offset + address - s.address
		}
	}
	return -1
}

// textIn returns a string of a table of strings.
func (m *image) textIn(table, at int64) string {
	if at > m.size-table {
		return ""
	}
	return m.text(table + at)
}

// text returns the string at an offset, up to its zero byte.
func (m *image) text(off int64) string {
	p := read(m, off, min(maxString, m.size-off))
	end := bytes.IndexByte(p, 0)
	if end < 0 {
		return ""
	}
	return string(p[:end])
}
