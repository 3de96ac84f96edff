package fuse

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	empty, full := filepath.Join(dir, "empty"), filepath.Join(dir, "full")
	err := errors.Join(os.Mkdir(empty, 0o755), os.Mkdir(full, 0o755), os.WriteFile(filepath.Join(full, "file"), nil, 0o644), os.Symlink(empty, filepath.Join(dir, "link")))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"empty": nil, "link": nil, "full": unix.ENOTEMPTY, "full/file": unix.ENOTDIR, "none": unix.ENOENT} {
		path, err := Prepare(filepath.Join(dir, name))
		if !errors.Is(err, want) || want == nil && path != empty {
			t.Errorf("%s: %q, %v; want %v", name, path, err, want)
		}
	}
}

const mounts = `22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
95 22 0:50 / /a rw,nosuid shared:2 master:1 - fuse.sshfs host:/x rw
96 95 0:51 / /a ro,nosuid,nodev - fuse.granary docker.io/library/alpine:3 ro,user_id=0
97 22 0:52 / /with\040a\134space ro - fuse.granary a\011b ro
98 22 0:53 / /short
`

func TestFindMount(t *testing.T) {
	for path, want := range map[string]mount{
		"/":              {"259:1", "ext4", "/dev/root"},
		"/a":             {"0:51", "fuse.granary", "docker.io/library/alpine:3"},
		`/with a\space`:  {"0:52", "fuse.granary", "a\tb"},
		"/short":         {},
		"/b":             {},
		`/with\040space`: {},
	} {
		if got, ok := findMount(strings.NewReader(mounts), path); got != want || ok != (want != mount{}) {
			t.Errorf("%s: %+v, %v", path, got, ok)
		}
	}
}

func FuzzFindMount(f *testing.F) {
	f.Add(mounts, "/a")
	f.Add(`1 1 0:1 / /\777\ - a b`, "/")
	f.Fuzz(func(t *testing.T, list, path string) {
		if m, ok := findMount(strings.NewReader(list), path); !ok && m != (mount{}) {
			t.Errorf("%q: %+v", list, m)
		}
	})
}
