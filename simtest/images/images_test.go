package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDifference puts the difference of two systems over the lower one, which gives the
// upper one.
func TestDifference(t *testing.T) {
	dir := t.TempDir()
	below, system, layer := filepath.Join(dir, "below"), filepath.Join(dir, "system"), filepath.Join(dir, "layer")
	write := func(name string, files ...string) {
		t.Helper()
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			path, content, _ := strings.Cut(f, "=")
			h := &tar.Header{Name: "./" + path, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}
			if strings.HasSuffix(path, "/") {
				h.Typeflag = tar.TypeDir
			}
			_ = w.WriteHeader(h)
			_, _ = io.WriteString(w, content)
		}
		if err := errors.Join(w.Close(), os.WriteFile(name, b.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write(below, "a/", "a/same=1", "a/changed=1", "b/", "b/same=1")
	write(system, "a/", "a/same=1", "a/changed=2", "b/", "b/same=1", "c/", "c/new=1")
	if err := Difference(below, system, layer); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := EachEntry(layer, func(h *tar.Header, content io.Reader) error {
		p, err := io.ReadAll(content)
		got = append(got, strings.TrimPrefix(h.Name, "./")+"="+string(p))
		return err
	})
	if want := []string{"a/=", "a/changed=2", "c/=", "c/new=1"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	write(system, "a/", "a/same=1", "b/", "b/same=1")
	if err := Difference(below, system, layer); err == nil || !strings.Contains(err.Error(), "a/changed") {
		t.Errorf("something is missing: %v", err)
	}
}
