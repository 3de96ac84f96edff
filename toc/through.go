package toc

import "maps"

// A layer may have files in a directory that it has no entry for, and that is a symlink
// in the layers below. Programs that unpack all layers in one place follow it: umoci,
// containerd where a snapshot is a copy, and containers/storage's vfs. An entry for the
// directory itself takes the place of the symlink. Those that unpack each layer in a
// directory of its own, for overlayfs, see no layer below, and hide the symlink.

// through returns a layer as it is over the tree: what it has, removes and links to
// through symlinks of the tree is where these lead. was has the names that the layer
// itself has for what is elsewhere so. A layer that has nothing such is returned as it is.
func (t *Tree) through(l *Layer) (moved *Layer, was map[string]string, err error) {
	if len(t.nodes) == 0 {
		return l, nil, nil
	}
	c, err := changesOf(l)
	if err != nil {
		return nil, nil, err
	}
	f := follower{target: func(name string) (string, bool) { return t.target(c, name) }}
	needed, err := f.needed(l)
	if err != nil || !needed {
		return l, nil, err
	}
	table, was, err := f.table(l.TOC)
	if err != nil {
		return nil, nil, err
	}
	over := *l
	over.TOC = table
	return &over, was, nil
}

// target returns what the symlink of a name refers to that whoever unpacks the next layer
// finds: the layer's own, else one of the tree's that the layer does not hide.
func (t *Tree) target(c *changes, name string) (string, bool) {
	if i, ok := c.layer.Find(name); ok && !c.layer.records[i].implied() {
		r := &c.layer.records[i]
		if r.typ != Symlink {
			return "", false
		}
		return c.layer.links[r.link-1], true
	}
	i, ok := t.Find(name)
	if !ok || marked(name) {
		return "", false
	}
	n := t.nodes[i]
	r := t.record(n.inode)
	if r.typ != Symlink || c.hides(name) {
		return "", false
	}
	return t.layers[n.layer].links[r.link-1], true
}

// needed reports whether anything that a layer names is elsewhere. Only directories that
// it has no entry for can be symlinks below it.
func (f *follower) needed(l *Layer) (bool, error) {
	for i := range l.records {
		r := &l.records[i]
		switch {
		case r.implied():
			if _, ok := f.target(r.name); ok {
				return true, nil
			}
		case r.typ == Hardlink:
			to := l.links[r.link-1]
			if at, err := f.move(to); err != nil || at != to {
				return true, err
			}
		}
	}
	return false, nil
}

// table returns a table with the names that the follower says, and which of them the
// given one has otherwise. Of two entries that come to the same name the one that has
// had it stays.
func (f *follower) table(of *TOC) (table *TOC, was map[string]string, err error) {
	b := Builder{t: *of}
	b.t.links = append([]string(nil), of.links...)
	b.t.records = nil
	was = make(map[string]string)
	var stay []record
	for _, r := range of.records {
		if r.implied() {
			continue
		}
		name := r.name
		if err := r.move(f, b.t.links); err != nil {
			return nil, nil, err
		}
		if r.name == name {
			stay = append(stay, r)
			continue
		}
		was[r.name] = name
		b.t.records = append(b.t.records, r)
	}
	for i := range stay {
		delete(was, stay[i].name)
	}
	b.t.records = append(b.t.records, stay...)
	if err := b.replace(); err != nil {
		return nil, nil, err
	}
	if err := b.addParents(); err != nil {
		return nil, nil, err
	}
	maps.DeleteFunc(was, func(name, _ string) bool { _, ok := b.t.Find(name); return !ok })
	return &b.t, was, nil
}
