package toc

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// Builder makes a table of entries in the order in which a layer has them. The zero
// value is ready to use, by one goroutine.
type Builder struct {
	t     TOC
	order []uint32 // of the records, as they were added
	text  int      // bytes of names and targets
	attrs map[string]uint32
}

// Clean returns the name of an entry that a layer calls name. It is never outside
// the root.
func Clean(name string) string { return path.Clean("/" + name)[1:] }

// Add adds an entry, which takes the place of an earlier one of the same name. Name,
// and the target of a hardlink, are cleaned.
func (b *Builder) Add(e Entry) error {
	called := e.Name
	e.Name = Clean(e.Name)
	if e.Type == Hardlink && e.Link != "" {
		e.Link = Clean(e.Link)
	}
	err := e.check()
	b.text += len(e.Name) + len(e.Link)
	switch {
	case err != nil:
	case e.Name == "" && e.Type != Directory:
		err = fmt.Errorf("%w: the root is a %v", ErrMalformed, e.Type)
	case len(b.t.records) >= MaxEntries:
		err = fmt.Errorf("%w: more than %d entries", ErrLimit, MaxEntries)
	case len(b.t.extents)+len(e.Extents) > MaxExtents:
		err = fmt.Errorf("%w: more than %d extents", ErrLimit, MaxExtents)
	case b.text > MaxText:
		err = fmt.Errorf("%w: names of more than %d bytes", ErrLimit, MaxText)
	}
	if err != nil {
		return fmt.Errorf("entry %q: %w", shorten(called), err)
	}
	b.add(e)
	return nil
}

func shorten(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func (b *Builder) add(e Entry) {
	t := &b.t
	r := record{
		name: e.Name, typ: e.Type, mode: uint16(e.Mode & 0o7777), uid: e.UID, gid: e.GID, size: e.Size,
		seconds: e.ModTime.Unix(), nanos: uint32(e.ModTime.Nanosecond()),
		first: uint32(len(t.extents)), count: uint32(len(e.Extents)),
	}
	if e.Type == CharDevice || e.Type == BlockDevice {
		r.size = int64(e.Major)<<32 | int64(e.Minor)
	}
	if e.Link != "" {
		t.links = append(t.links, e.Link)
		r.link = uint32(len(t.links))
	}
	r.xattrs = b.share(e.Xattrs)
	t.extents = append(t.extents, e.Extents...)
	one := len(e.Extents) == 1 && e.Extents[0].Offset == 0 && e.Extents[0].Size == e.Size
	switch {
	case !e.Digest.Known() || len(e.Extents) == 0:
	case one && !e.Extents[0].Digest.Known():
		t.extents[r.first].Digest = e.Digest
	case !one:
		if t.whole == nil {
			t.whole = make(map[uint32]Digest)
		}
		t.whole[r.first] = e.Digest
	}
	t.records = append(t.records, r)
}

// share returns the position of a set of attributes, from 1; 0 is none.
func (b *Builder) share(attrs map[string]string) uint32 {
	if len(attrs) == 0 {
		return 0
	}
	var key strings.Builder
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		fmt.Fprintf(&key, "%d %s %d %s ", len(k), k, len(attrs[k]), attrs[k])
	}
	if i, ok := b.attrs[key.String()]; ok {
		return i
	}
	if b.attrs == nil {
		b.attrs = make(map[string]uint32)
	}
	b.t.xattrs = append(b.t.xattrs, maps.Clone(attrs))
	i := uint32(len(b.t.xattrs))
	b.attrs[key.String()] = i
	return i
}

// Done returns the table of what was added. The builder is not to be used again.
func (b *Builder) Done() (*TOC, error) {
	t := &b.t
	b.attrs = nil
	if err := b.followLinks(); err != nil {
		return nil, err
	}
	if err := b.replace(); err != nil {
		return nil, err
	}
	if err := b.addParents(); err != nil {
		return nil, err
	}
	t.records = slices.Clip(t.records)
	t.extents = slices.Clip(t.extents)
	return t, nil
}

// followLinks moves entries that are named through a symlink of their own layer to
// where that leads: so do programs that unpack it.
func (b *Builder) followLinks() error {
	targets := make(map[string]string)
	for i := range b.t.records {
		if r := &b.t.records[i]; r.typ == Symlink {
			targets[r.name] = b.t.links[r.link-1]
		} else {
			delete(targets, r.name)
		}
	}
	if len(targets) == 0 {
		return nil
	}
	f := follower{target: func(name string) (string, bool) { to, ok := targets[name]; return to, ok }}
	for i := range b.t.records {
		if err := b.t.records[i].move(&f, b.t.links); err != nil {
			return err
		}
	}
	return nil
}

// move gives a record, and what it is a hardlink to, the names that a follower says.
func (r *record) move(f *follower, links []string) (err error) {
	if r.name, err = f.move(r.name); err == nil && r.typ == Hardlink {
		links[r.link-1], err = f.move(links[r.link-1])
	}
	return err
}

// replace sorts the records, and leaves the last one of each name. A directory that
// something else replaces goes with all that was in it.
func (b *Builder) replace() error {
	t := &b.t
	if len(t.records) > math.MaxUint32 {
		return ErrLimit
	}
	b.order = make([]uint32, len(t.records))
	for i := range b.order {
		b.order[i] = uint32(i)
	}
	slices.SortFunc(b.order, func(x, y uint32) int {
		return cmp.Or(strings.Compare(t.records[x].name, t.records[y].name), cmp.Compare(x, y))
	})
	sorted := make([]record, 0, len(t.records)+16)
	replaced := make(map[string]uint32) // directories that something else took the place of: when
	for i, at := range b.order {
		r := t.records[at]
		if i+1 == len(b.order) || t.records[b.order[i+1]].name != r.name {
			sorted = append(sorted, r)
			b.order[len(sorted)-1] = at
			continue
		}
		if next := b.order[i+1]; r.typ == Directory && t.records[next].typ != Directory {
			replaced[r.name] = next
		}
	}
	b.order = b.order[:len(sorted)]
	t.records = sorted
	if len(replaced) > 0 {
		b.dropReplaced(replaced)
	}
	return nil
}

func (b *Builder) dropReplaced(replaced map[string]uint32) {
	kept := b.t.records[:0]
	for i, r := range b.t.records {
		gone := false
		for dir := r.name; dir != "" && !gone; {
			dir = parent(dir)
			when, ok := replaced[dir]
			gone = ok && b.order[i] < when
		}
		if !gone {
			kept = append(kept, r)
		}
	}
	b.t.records = kept
}

// addParents adds the directories that are not entries.
func (b *Builder) addParents() error {
	t := &b.t
	var missing []record
	added := make(map[string]bool)
	for i := range t.records {
		for dir := t.records[i].name; dir != ""; {
			dir = parent(dir)
			if at, ok := t.Find(dir); ok {
				if t.records[at].typ != Directory {
					return fmt.Errorf("entry %q: %w: it is in a %v", shorten(t.records[i].name), ErrMalformed, t.records[at].typ)
				}
				break
			}
			if added[dir] {
				break
			}
			added[dir] = true
			missing = append(missing, implied(dir))
		}
		if len(t.records)+len(missing) > MaxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrLimit, MaxEntries)
		}
	}
	if _, ok := t.Find(""); !ok && !added[""] {
		missing = append(missing, implied(""))
	}
	t.records = append(t.records, missing...)
	slices.SortFunc(t.records, func(x, y record) int { return strings.Compare(x.name, y.name) })
	return nil
}

// implied returns a directory that a layer has no entry for.
func implied(name string) record {
	return record{name: name, typ: Directory, mode: 0o755, seconds: time.Time{}.Unix()}
}

// implied reports whether r is what [implied] has made.
func (r *record) implied() bool { return r.typ == Directory && r.seconds == time.Time{}.Unix() }
