package toc

import (
	"fmt"
	"maps"
	"strings"
)

// How layers say what they remove. OCI's marks are names (image-spec, layer.md,
// "Whiteouts"); those of overlayfs are devices and attributes (kernel, overlayfs.rst,
// "whiteouts and opaque directories"). Names that begin with ".wh..wh." and mean
// nothing else were AUFS's own, and are left out.
const (
	mark        = ".wh."
	opaqueMark  = ".wh..wh..opq"
	privateMark = ".wh..wh."
)

// overlayAttrs are the prefixes of the attributes that overlayfs keeps to itself.
var overlayAttrs = []string{"trusted.overlay.", "user.overlay."}

// changes is what a layer does to those below it.
type changes struct {
	layer  *Layer
	gone   map[string]bool // names that are whited out
	opaque map[string]bool // directories of which nothing below is seen
	covers map[string]bool // directories of lower layers: whether what is in them is hidden
}

func changesOf(l *Layer) (*changes, error) {
	c := &changes{l, make(map[string]bool), make(map[string]bool), make(map[string]bool)}
	for i := range l.records {
		r := &l.records[i]
		if l.Overlayfs {
			c.noteDevice(r)
		} else if err := c.noteName(r.name); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// noteName takes note of a whiteout of OCI.
func (c *changes) noteName(name string) error {
	dir, base := parent(name), name[strings.LastIndexByte(name, '/')+1:]
	switch {
	case !strings.HasPrefix(base, mark) || marked(dir):
	case base == opaqueMark:
		c.opaque[dir] = true
	case strings.HasPrefix(base, privateMark):
	case base == mark || base == mark+"." || base == mark+"..":
		return fmt.Errorf("entry %q: %w: a whiteout of no name", shorten(name), ErrMalformed)
	default:
		c.gone[Clean(dir+"/"+base[len(mark):])] = true
	}
	return nil
}

// noteDevice takes note of a whiteout of overlayfs.
func (c *changes) noteDevice(r *record) {
	if c.device(r) {
		c.gone[r.name] = true
		return
	}
	if r.typ != Directory || r.xattrs == 0 {
		return
	}
	for _, prefix := range overlayAttrs {
		if c.layer.xattrs[r.xattrs-1][prefix+"opaque"] == "y" {
			c.opaque[r.name] = true
		}
	}
}

// device reports whether a record is a whiteout of overlayfs.
func (c *changes) device(r *record) bool {
	var attrs map[string]string
	if r.xattrs > 0 {
		attrs = c.layer.xattrs[r.xattrs-1]
	}
	return whiteout(r.typ, r.size, attrs)
}

// Whiteout reports whether an entry is a whiteout by the rules of overlayfs.
func (e *Entry) Whiteout() bool {
	return whiteout(e.Type, e.Size|int64(e.Major)|int64(e.Minor), e.Xattrs)
}

// whiteout is that of a type, size or device number, and attributes: a device, or an
// empty file with an attribute, for devices cannot be there where overlays are nested.
func whiteout(t Type, n int64, attrs map[string]string) bool {
	if n != 0 || t != CharDevice && t != Regular {
		return false
	}
	_, trusted := attrs[overlayAttrs[0]+"whiteout"]
	_, user := attrs[overlayAttrs[1]+"whiteout"]
	return t == CharDevice || trusted || user
}

// marked reports whether a name is a whiteout of OCI, or in one.
func marked(name string) bool {
	return strings.HasPrefix(name, mark) || strings.Contains(name, "/"+mark)
}

// marks reports whether a record says what the layer removes, and is no file.
func (c *changes) marks(r *record) bool {
	if c.layer.Overlayfs {
		return c.device(r)
	}
	return marked(r.name)
}

// hides reports whether nothing is seen of what a lower layer has under a name. What
// the layer itself has under that very name is not considered.
func (c *changes) hides(name string) bool {
	return c.gone[name] || name != "" && c.hidesIn(parent(name))
}

// hidesIn reports whether nothing is seen of what lower layers have in a directory.
func (c *changes) hidesIn(dir string) bool {
	hidden, known := c.covers[dir]
	if !known {
		hidden = c.opaque[dir] || c.replaces(dir) || dir != "" && c.hides(dir)
		c.covers[dir] = hidden
	}
	return hidden
}

// replaces reports whether the layer has something else than a directory there.
func (c *changes) replaces(dir string) bool {
	i, ok := c.layer.Find(dir)
	return ok && c.layer.records[i].typ != Directory && !c.marks(&c.layer.records[i])
}

// visible returns attributes without those that overlayfs keeps to itself. They are none
// of a file's: an overlay on what a layer smuggles in with them would refuse, or redirect.
func visible(attrs map[string]string) map[string]string {
	private := func(name string, _ string) bool {
		return strings.HasPrefix(name, overlayAttrs[0]) || strings.HasPrefix(name, overlayAttrs[1])
	}
	for name := range attrs {
		if private(name, "") {
			attrs = maps.Clone(attrs)
			maps.DeleteFunc(attrs, private)
			break
		}
	}
	return attrs
}
