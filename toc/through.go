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
func (t *Tree) through(c *changes) (over *Layer, was map[string]string, err error) {
	l := c.layer
	if len(t.nodes) == 0 {
		return l, nil, nil
	}
	m := &mover{tree: t, changes: c}
	f := follower{target: m.target}
	needed, err := f.needed(l)
	if err != nil || !needed {
		return l, nil, err
	}
	if err := m.note(&f); err != nil {
		return nil, nil, err
	}
	f = follower{target: m.target} // which knows more now
	table, was, err := f.table(l.TOC)
	if err != nil {
		return nil, nil, err
	}
	moved := *l
	moved.TOC = table
	return &moved, was, nil
}

// mover knows the symlinks that whoever unpacks a layer over a tree finds.
type mover struct {
	tree *Tree
	*changes
	moved map[string]*record // what the layer has elsewhere than its names say
}

// note takes note of what a follower moves.
func (m *mover) note(f *follower) error {
	m.moved = make(map[string]*record)
	for i := range m.layer.records { // a directory is before what is in it
		r := &m.layer.records[i]
		if r.implied() || m.marks(r) {
			continue
		}
		name, err := f.move(r.name)
		if err != nil {
			return err
		}
		if name != r.name {
			m.moved[name] = r
		}
	}
	return nil
}

// target returns what the symlink of a name refers to: the layer's own, else one of the
// tree's that the layer does not hide.
func (m *mover) target(name string) (string, bool) {
	r := m.moved[name]
	if i, ok := m.layer.Find(name); ok && !m.layer.records[i].implied() {
		r = &m.layer.records[i]
	}
	if r != nil {
		return m.layer.target(r)
	}
	i, ok := m.tree.Find(name)
	if !ok || marked(name) {
		return "", false
	}
	n := m.tree.nodes[i]
	if r = m.tree.record(n.inode); r.typ != Symlink || m.hides(name) {
		return "", false
	}
	return m.tree.layers[n.layer].target(r)
}

// target returns what a record refers to, if it is a symlink.
func (t *TOC) target(r *record) (string, bool) {
	if r.typ != Symlink {
		return "", false
	}
	return t.links[r.link-1], true
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
