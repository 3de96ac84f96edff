package powercut

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
)

const pageSize = 4096

// Rebuild makes in dir, an empty folder, what a disk may hold if the power fails
// when n operations had been asked. rng decides what else than the synced is
// there.
func (r *Recording) Rebuild(dir string, n int, rng *rand.Rand) error {
	r.mu.Lock()
	ops := r.ops[:n]
	r.mu.Unlock()
	names := r.keptNames(ops, rng)
	tree := replay(ops, names)
	for _, folder := range tree.folders {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return err
		}
	}
	luck := rng.Float64() // of a page that was not synced
	for name, id := range tree.files {
		if err := r.rebuildFile(filepath.Join(dir, name), id, ops, names, luck, rng); err != nil {
			return err
		}
	}
	return nil
}

// keptNames returns up to which operation names and sizes are kept: beyond all
// that is durable, by chance.
func (r *Recording) keptNames(ops []op, rng *rand.Rand) int {
	durable := 0
	for i, o := range ops {
		if o.kind != write && o.kind != syncFile && o.kind != syncDir && isDurable(o, ops[i+1:]) {
			durable = i + 1
		}
	}
	return durable + rng.IntN(len(ops)-durable+1)
}

// isDurable reports whether a later sync vouches for a change of a name or size.
func isDurable(o op, later []op) bool {
	name := o.name
	if o.kind == rename {
		name = o.to
	}
	for _, l := range later {
		if l.kind == syncFile && l.id == o.id && (o.kind == create || o.kind == truncate) {
			return true
		}
		if l.kind == syncDir && o.kind != truncate && l.name == strings.TrimPrefix(path.Dir(name), ".") {
			return true
		}
	}
	return false
}

// tree is the names that a disk holds.
type tree struct {
	folders []string
	files   map[string]int // file identities by name
}

func replay(ops []op, names int) tree {
	t := tree{files: make(map[string]int)}
	folders := make(map[string]bool)
	for _, o := range ops[:names] {
		switch o.kind {
		case create:
			t.files[o.name] = o.id
		case mkdir:
			folders[o.name] = true
		case unlink:
			delete(t.files, o.name)
		case rmdir:
			delete(folders, o.name)
		case rename:
			if id, ok := t.files[o.name]; ok {
				delete(t.files, o.name)
				t.files[o.to] = id
			}
		}
	}
	for name := range folders {
		t.folders = append(t.folders, name)
	}
	return t
}

// rebuildFile makes one file of its synced writes and a random part of the
// others.
func (r *Recording) rebuildFile(name string, id int, ops []op, names int, luck float64, rng *rand.Rand) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	synced := 0
	for i, o := range ops {
		if o.kind == syncFile && o.id == id && o.completed <= len(ops) {
			synced = i
		}
	}
	for i, o := range ops {
		if o.id != id {
			continue
		}
		switch {
		case o.kind == truncate && (i < names || i < synced):
			err = f.Truncate(o.n)
		case o.kind == write && i < synced:
			err = r.copy(f, o.off, o.spool, o.n)
		case o.kind == write:
			err = r.copyPages(f, o, luck, rng)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyPages writes those pages of a write that luck has.
func (r *Recording) copyPages(f *os.File, o op, luck float64, rng *rand.Rand) error {
	for at := int64(0); at < o.n; {
		k := min(pageSize-(o.off+at)%pageSize, o.n-at)
		if rng.Float64() < luck {
			if err := r.copy(f, o.off+at, o.spool+at, k); err != nil {
				return err
			}
		}
		at += k
	}
	return nil
}

func (r *Recording) copy(f *os.File, off, spool, n int64) error {
	p := make([]byte, n)
	if _, err := r.spool.ReadAt(p, spool); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err := f.WriteAt(p, off)
	return err
}
