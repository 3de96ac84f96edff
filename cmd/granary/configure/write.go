package configure

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// write is a file as it is and as it is to be.
type write struct {
	*file
	new    []byte
	is     bool // whether it is to exist
	unmake int  // directories above it that are removed after it, if they are empty
}

// Apply writes what was planned, each file at once and durably, with the owner and the
// mode that it has. If something cannot be written, what has been is taken back.
func (p *Plan) Apply() error {
	for i, w := range p.writes {
		err := w.apply()
		if err == nil {
			continue
		}
		errs := []error{fmt.Errorf("%s: %w", w.name, cause(err))}
		for ; i >= 0; i-- {
			errs = append(errs, p.writes[i].revert())
		}
		return errors.Join(errs...)
	}
	return nil
}

// changes reports whether there is anything to do.
func (w write) changes() bool { return w.is != w.there || !bytes.Equal(w.new, w.text) }

func (w write) apply() error {
	if w.changes() {
		if err := w.set(w.new, w.is); err != nil {
			return err
		}
	}
	dir := filepath.Dir(w.path)
	for range w.unmake {
		if os.Remove(dir) != nil { // others use it
			break
		}
		dir = filepath.Dir(dir)
	}
	return nil
}

// revert makes the file what it was.
func (w write) revert() error {
	if !w.changes() {
		return nil
	}
	if err := w.set(w.text, w.there); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s could not be restored: %w", w.name, cause(err))
	}
	return nil
}

// set makes a file have a text, or not exist.
func (w write) set(text []byte, exist bool) error {
	dir := filepath.Dir(w.path)
	if !exist {
		if err := os.Remove(w.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncDir(dir)
	}
	if err := os.MkdirAll(dir, newDirMode); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".granary-*") // a name that no runtime reads
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err == nil && w.uid >= 0 {
		err = f.Chown(w.uid, w.gid)
	}
	if err == nil {
		err = f.Chmod(w.mode) // after the owner, whose change takes set-user-ID away
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), w.path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
