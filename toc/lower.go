package toc

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// lower is what [Lowers] adds to a tree.
type lower struct {
	*changes
	layer uint32            // of the tree's layers
	attrs map[string]string // by directory: the attribute that it gets, see special
}

// Attributes that tell overlayfs of a directory.
var (
	opaqueAttr = overlayAttrs[0] + "opaque" // "y": nothing below it is seen
	originAttr = overlayAttrs[0] + "origin" // of any value: whiteouts in it are not listed, although nothing is below it
)

var special = map[string]string{opaqueAttr: "y", originAttr: ""}

// Lower is [Lowers] of one layer of which those below are not known.
func Lower(layer *Layer) (*Tree, error) {
	trees, err := Lowers([]*Layer{layer})
	if err != nil {
		return nil, err
	}
	return trees[0], nil
}

// Lowers returns what overlayfs is to see of each of an image's layers, the lowest first,
// so that it shows of all what [Overlay] does. Layers may be nil, if they are seen
// otherwise; their trees are nil. What a layer removes, however it says so, is a
// character device 0/0 there, unless the layer has something else of that name, and a
// directory that hides all below it has the attribute "trusted.overlay.opaque". The
// other attributes that overlayfs keeps to itself are left out, whoever has given them.
//
// What refers to layers below is taken from these: the attributes of a directory that the
// layer has no entry for, and a file that it has a hardlink to, with all names of that
// file; and symlinks that it has something in. What is in none of them stays a
// [Hardlink], or where the layer has it.
//
// Two things differ from [Overlay]. A device 0/0 in a layer of which whiteouts are names
// takes the place of what is below, and cannot be seen. A file some names of which a
// layer above removes is said to have them still.
//
// overlayfs asks no root whether it is opaque: what is below one that is must be left out.
func Lowers(layers []*Layer) ([]*Tree, error) {
	all := newTree(layers, true)
	trees := make([]*Tree, len(layers))
	for i, l := range layers {
		if l == nil {
			continue
		}
		c, err := all.add(uint32(i))
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		trees[i] = lowerOf(all, c, uint32(i))
	}
	return trees, nil
}

// lowerOf returns what overlayfs is to see of the layer that was added to a tree last.
func lowerOf(all *Tree, c *changes, layer uint32) *Tree {
	t := &Tree{given: all.given, layers: all.layers, was: all.was, alone: true, lower: &lower{c, layer, make(map[string]string)}}
	linked := make(map[inode]bool) // files below that the layer has names for
	for at := range c.layer.records {
		r := &c.layer.records[at]
		if c.marks(r) {
			continue
		}
		i, _ := all.Find(r.name)
		n := all.nodes[i]
		t.nodes = append(t.nodes, n)
		if r.typ == Hardlink && n.layer != layer {
			linked[n.inode] = true
		}
	}
	t.nodes = append(t.nodes, all.namesOf(linked)...)
	t.nodes = append(t.nodes, c.whiteouts(layer)...)
	slices.SortFunc(t.nodes, func(x, y node) int { return strings.Compare(x.name, y.name) })
	t.nodes = slices.CompactFunc(t.nodes, func(x, y node) bool { return x.name == y.name })
	t.nodes = slices.DeleteFunc(t.nodes, func(n node) bool { return t.removes(n) && c.hidesIn(parent(n.name)) })
	t.nodes = slices.Clip(t.nodes)
	t.attribute()
	t.count()
	return t
}

// Lowest returns the tree of [Overlay] as overlayfs is to see it below all else: for what
// differs see [Lowers].
func (t *Tree) Lowest() *Tree {
	lowest := *t
	lowest.lower = &lower{changes: &changes{}, layer: math.MaxUint32, attrs: make(map[string]string)}
	lowest.attribute()
	return &lowest
}

// namesOf returns all names of files, and the directories that those are in.
func (t *Tree) namesOf(files map[inode]bool) (nodes []node) {
	if len(files) == 0 {
		return nil
	}
	for _, n := range t.nodes {
		if !files[n.inode] {
			continue
		}
		nodes = append(nodes, n)
		for dir := n.name; dir != ""; {
			dir = parent(dir)
			i, _ := t.Find(dir)
			nodes = append(nodes, t.nodes[i])
		}
	}
	return nodes
}

// whiteouts returns what the layer removes and has nothing else for, by what says so.
func (c *changes) whiteouts(layer uint32) (nodes []node) {
	for name := range c.gone {
		if i, ok := c.layer.Find(name); ok && !c.marks(&c.layer.records[i]) {
			continue
		}
		by := name
		if !c.layer.Overlayfs {
			at := strings.LastIndexByte(name, '/') + 1
			by = name[:at] + mark + name[at:]
		}
		i, _ := c.layer.Find(by)
		nodes = append(nodes, node{name, inode{layer, uint32(i)}})
	}
	return nodes
}

// removes reports whether overlayfs takes a node for a whiteout: what the layer removes,
// or a device that looks so.
func (t *Tree) removes(n node) bool {
	r := t.record(n.inode)
	return r.typ == CharDevice && r.size == 0 || t.lower.whiteout(n, r)
}

// whiteout reports whether a node, of a record, is what the layer removes.
func (l *lower) whiteout(n node, r *record) bool { return n.layer == l.layer && l.marks(r) }

// attribute says which directories get an attribute. None gets both: what is in one that
// hides all below needs no whiteouts.
func (t *Tree) attribute() {
	for _, n := range t.nodes {
		switch l := t.lower; {
		case t.removes(n):
			l.attrs[parent(n.name)] = originAttr
		case t.record(n.inode).typ == Directory && (l.opaque[n.name] || l.gone[n.name]):
			l.attrs[n.name] = opaqueAttr
		}
	}
	t.lower.covers = nil
}

// mark makes of the file of a node, and a record, what overlayfs is to see of it.
func (l *lower) mark(f *File, n node, r *record) {
	if l.whiteout(n, r) {
		f.Entry = Entry{Name: f.Name, Type: CharDevice, ModTime: f.ModTime}
		return
	}
	if attr, ok := l.attrs[f.Name]; ok {
		f.Xattrs = maps.Clone(f.Xattrs)
		if f.Xattrs == nil {
			f.Xattrs = make(map[string]string, 1)
		}
		f.Xattrs[attr] = special[attr]
	}
}
