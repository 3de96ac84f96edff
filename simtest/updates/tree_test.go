package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/granary-oci/granary/simtest/images"
)

// TestReadAll: what differs from the layers is told, be it a byte, or a file that is missing or too much.
func TestReadAll(t *testing.T) {
	dir := t.TempDir()
	lower, upper, root := filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "root")
	file := func(w *tree, name, text string) error {
		return w.file(name, 0o644, int64(len(text)), func(f io.Writer) error { _, err := io.WriteString(f, text); return err })
	}
	err := errors.Join(
		writeTar(lower, older, func(w *tree) error { return errors.Join(file(w, "a/one", "1"), file(w, "a/two", "2")) }),
		writeTar(upper, newer, func(w *tree) error { return file(w, "a/two", "3") }))
	if err != nil {
		t.Fatal(err)
	}
	files, err := contentsOf([]string{lower, upper})
	if err != nil {
		t.Fatal(err)
	}
	one := filepath.Join(root, "a", "one")
	for name, c := range map[string]struct {
		spoil func() error
		wrong bool
	}{
		"as it is": {func() error { return nil }, false},
		"a byte":   {func() error { return os.WriteFile(one, []byte("x"), 0o644) }, true},
		"missing":  {func() error { return os.Remove(one) }, true},
		"too much": {func() error { return os.WriteFile(one+"more", nil, 0o644) }, true},
	} {
		err := errors.Join(os.RemoveAll(root), images.Unpack(lower, root), images.Unpack(upper, root), c.spoil())
		if err != nil {
			t.Fatal(err)
		}
		if err := files.readAll(root); err != nil != c.wrong {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestModel: 5 % of the newer model are not those of the older one, in place.
func TestModel(t *testing.T) {
	dir := t.TempDir()
	var all [2][]byte
	for i, v := range []version{older, newer} {
		layers, err := modelLayers(dir, v, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if all[i], err = os.ReadFile(layers[0]); err != nil {
			t.Fatal(err)
		}
	}
	const header = 512
	changed, total := 0, len(all[0])-header
	for i := range total {
		if all[0][header+i] != all[1][header+i] {
			changed++
		}
	}
	if share := float64(changed) / float64(total); share < 0.045 || share > 0.055 {
		t.Errorf("%.3f has changed", share)
	}
}
