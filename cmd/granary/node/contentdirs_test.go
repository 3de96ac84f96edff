package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestContentDirsThatAreSomethingElse(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"root/" + containerdContent, "layout/blobs/sha256", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"layout": "", "empty": "", "root/" + containerdContent: "",
		"file": "no directory", "root": "blobs are in " + filepath.Join(dir, "root", containerdContent), "layout/blobs": "name the directory",
	} {
		err := isContentDir(filepath.Join(dir, name))
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := isContentDir(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what may come later: %v", err)
	}
}
