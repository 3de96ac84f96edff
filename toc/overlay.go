package toc

import (
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"sort"
	"strings"
)

// Tree is the file system of an image: its layers, laid over each other. It is
// immutable.
//
// It takes 24 bytes for each entry beside the layers' tables.
type Tree struct {
	given  []*Layer
	layers []*Layer            // the same, with what symlinks of lower layers move: see through
	was    []map[string]string // by layer: what it calls what was moved
	nodes  []node              // sorted by name
	links  map[inode]int
	alone  bool   // it is one layer, and others may have what it refers to
	lower  *lower // it is what overlayfs is to see of one layer
}

func newTree(layers []*Layer, alone bool) *Tree {
	return &Tree{given: layers, layers: slices.Clone(layers), was: make([]map[string]string, len(layers)), alone: alone}
}

// inode is what several names may stand for: a record of a layer.
type inode struct{ layer, record uint32 }

type node struct {
	name string
	inode
}

// File is one name in a [Tree]. Where it is a further name of a file, its entry is
// that of the file, but for the name: no entry of a tree is a [Hardlink], unless the
// tree is [Alone] or a [Lower].
type File struct {
	Entry
	// Layer is the one that has the file, and Source the name that it has it under.
	Layer  *Layer
	Source string
	// Inode is the same for all names of a file, and for no others in the tree.
	Inode uint64
	// Links is the number of a file's names; of a directory's always 1.
	Links int
}

// Len returns the number of names in the tree, the root included.
func (t *Tree) Len() int { return len(t.nodes) }

// At returns the file at position i, 0 ≤ i < Len, in the order of names.
func (t *Tree) At(i int) File {
	n := t.nodes[i]
	e := t.layers[n.layer].At(int(n.record))
	f := File{Entry: e, Layer: t.given[n.layer], Source: e.Name, Inode: uint64(n.layer)<<32 | uint64(n.record), Links: 1}
	if was, ok := t.was[n.layer][e.Name]; ok {
		f.Source = was
	}
	f.Name = n.name
	if many, ok := t.links[n.inode]; ok {
		f.Links = many
	}
	f.Xattrs = visible(f.Xattrs)
	if t.lower != nil {
		t.lower.mark(&f, n, t.record(n.inode))
	}
	return f
}

// Find returns the position of a clean name.
func (t *Tree) Find(name string) (i int, ok bool) {
	i = sort.Search(len(t.nodes), func(i int) bool { return t.nodes[i].name >= name })
	return i, i < len(t.nodes) && t.nodes[i].name == name
}

// Lookup returns the file of a clean name. It follows no symlink.
func (t *Tree) Lookup(name string) (f File, ok bool) {
	i, ok := t.Find(name)
	if !ok {
		return f, false
	}
	return t.At(i), true
}

// All returns all files, by name.
func (t *Tree) All() iter.Seq[File] {
	return func(yield func(File) bool) {
		for i := range t.nodes {
			if !yield(t.At(i)) {
				return
			}
		}
	}
}

// Children returns what is directly in the directory of a clean name, by name.
func (t *Tree) Children(dir string) iter.Seq[File] {
	return func(yield func(File) bool) {
		for i := range t.Positions(dir, 0) {
			if !yield(t.At(i)) {
				return
			}
		}
	}
}

// Positions returns the positions, from start on, of what is directly in the directory
// of a clean name, by name.
func (t *Tree) Positions(dir string, start int) iter.Seq[int] {
	return children(dir, start, len(t.nodes), func(i int) string { return t.nodes[i].name })
}

// Below returns all that is in the directory of a clean name, and in those in it, by
// name.
func (t *Tree) Below(dir string) iter.Seq[File] {
	prefix := dir + "/"
	if dir == "" {
		prefix = ""
	}
	return func(yield func(File) bool) {
		i, _ := t.Find(prefix)
		for ; i < len(t.nodes) && strings.HasPrefix(t.nodes[i].name, prefix); i++ {
			if t.nodes[i].name != "" && !yield(t.At(i)) {
				return
			}
		}
	}
}

// ErrNoFile says that there is no file of a name.
var ErrNoFile = errors.New("no such file or directory")

// Resolve returns the file that a path leads to, with the symlinks on the way
// followed inside the tree; last says whether to follow the path's last element too.
// The error wraps [ErrNoFile].
func (t *Tree) Resolve(name string, last bool) (File, error) {
	rest, at, followed := strings.Split(strings.Trim(name, "/"), "/"), "", 0
	for len(rest) > 0 {
		element := rest[0]
		rest = rest[1:]
		next := Clean(at + "/" + element)
		f, ok := t.Lookup(next)
		switch {
		case !ok:
			return File{}, fmt.Errorf("%q: %w", name, ErrNoFile)
		case f.Type == Symlink && (len(rest) > 0 || last):
			if followed++; followed > maxFollow {
				return File{}, fmt.Errorf("%q: more than %d symlinks on the way", name, maxFollow)
			}
			if path.IsAbs(f.Link) {
				at = ""
			}
			rest = append(strings.Split(strings.Trim(f.Link, "/"), "/"), rest...)
			continue
		case f.Type != Directory && len(rest) > 0:
			return File{}, fmt.Errorf("%q: not a directory: %w", name, ErrNoFile)
		}
		at = next
	}
	f, _ := t.Lookup(at)
	return f, nil
}

// Overlay lays layers over each other, the lowest first, by the rules of OCI
// (image-spec, layer.md, "Applying Changesets"): what a layer whites out, or makes a
// directory opaque over, is hidden of the layers below it and never of its own; a
// directory over a directory gives it new attributes; anything else takes the place
// of what was there, and of all in it.
//
// What a layer has in a directory that it has no entry for is where that directory is
// in the layers below: symlinks there are followed, at most 40 of them, inside the tree.
func Overlay(layers []*Layer) (*Tree, error) { return overlay(newTree(layers, false)) }

// Alone is [Overlay] of one layer of several: what is a hardlink to a file of another
// layer stays a [Hardlink].
func Alone(layer *Layer) (*Tree, error) { return overlay(newTree([]*Layer{layer}, true)) }

func overlay(t *Tree) (*Tree, error) {
	layers := t.layers
	for i := range layers {
		if _, err := t.add(uint32(i)); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	if len(layers) == 0 {
		return t, fmt.Errorf("%w: an image without layers", ErrMalformed)
	}
	t.count()
	return t, nil
}

// add lays the next layer over the tree, and returns what that changes.
func (t *Tree) add(layer uint32) (*changes, error) {
	c, err := changesOf(t.layers[layer])
	if err != nil {
		return nil, err
	}
	over, was, err := t.through(c)
	if err != nil {
		return nil, err
	}
	if over != c.layer {
		if c, err = changesOf(over); err != nil {
			return nil, err
		}
	}
	t.layers[layer], t.was[layer] = over, was
	lower := make([]node, 0, len(t.nodes))
	for _, n := range t.nodes {
		if !c.hides(n.name) {
			lower = append(lower, n)
		}
	}
	t.merge(lower, layer, c)
	if len(t.nodes) > MaxEntries {
		return nil, fmt.Errorf("%w: more than %d entries", ErrLimit, MaxEntries)
	}
	return c, t.link(layer, lower)
}

// merge makes the tree of what a layer leaves of the lower ones, and its own.
func (t *Tree) merge(lower []node, layer uint32, c *changes) {
	t.nodes = make([]node, 0, len(lower)+c.layer.Len())
	for at := range c.layer.records {
		r := &c.layer.records[at]
		if c.marks(r) {
			continue
		}
		for len(lower) > 0 && lower[0].name < r.name {
			t.nodes, lower = append(t.nodes, lower[0]), lower[1:]
		}
		added := node{r.name, inode{layer, uint32(at)}}
		if len(lower) > 0 && lower[0].name == r.name {
			if r.implied() && t.record(lower[0].inode).typ == Directory {
				added = lower[0]
			}
			lower = lower[1:]
		}
		t.nodes = append(t.nodes, added)
	}
	t.nodes = append(t.nodes, lower...)
}

func (t *Tree) record(i inode) *record { return &t.layers[i.layer].records[i.record] }

// link makes further names of files of what a layer has as hardlinks. What they
// stand for is in the layer, or in those below it.
func (t *Tree) link(layer uint32, lower []node) error {
	l := t.layers[layer]
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.layer != layer || t.record(n.inode).typ != Hardlink {
			continue
		}
		to, err := target(l, n.record, layer, lower)
		if t.alone && errors.Is(err, errElsewhere) {
			continue
		}
		if err == nil && t.record(to).typ == Directory {
			err = fmt.Errorf("%w: a hardlink to a directory", ErrMalformed)
		}
		if err != nil {
			return fmt.Errorf("entry %q: %w", shorten(n.name), err)
		}
		n.inode = to
	}
	return nil
}

var errElsewhere = errors.New("which is not there")

// target returns what the hardlink at a position of a layer stands for.
func target(l *Layer, at, layer uint32, lower []node) (inode, error) {
	for range maxFollow {
		r := &l.records[at]
		if r.typ != Hardlink {
			return inode{layer, at}, nil
		}
		name := l.links[r.link-1]
		next, ok := l.Find(name)
		if ok && !l.records[next].implied() {
			at = uint32(next)
			continue
		}
		i := sort.Search(len(lower), func(i int) bool { return lower[i].name >= name })
		if i == len(lower) || lower[i].name != name {
			return inode{}, fmt.Errorf("%w: a hardlink to %q, %w", ErrMalformed, shorten(name), errElsewhere)
		}
		return lower[i].inode, nil
	}
	return inode{}, fmt.Errorf("%w: more than %d hardlinks on the way to a file", ErrMalformed, maxFollow)
}

// count counts the names of each file that has several.
func (t *Tree) count() {
	linked := make(map[inode]bool)
	for _, n := range t.nodes {
		if t.record(n.inode).name != n.name {
			linked[n.inode] = true
		}
	}
	t.links = make(map[inode]int, len(linked))
	for _, n := range t.nodes {
		if linked[n.inode] {
			t.links[n.inode]++
		}
	}
}
