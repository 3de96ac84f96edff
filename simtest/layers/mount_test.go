package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mount mounts an image through a node until the test ends.
func (n *node) mount(t *testing.T, ref string, flags ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	args := append([]string{"mount", "--node", n.admin, "--default-upstream", registryHost, ref, dir}, flags...)
	p, err := n.lab.begin(n.lab.granary, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.end(); err != nil {
			t.Errorf("the mount of %s ended with %v:\n%s", ref, err, p.output())
		}
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	for range 1200 { // some layers are read to their end first
		switch out := p.output(); {
		case strings.Contains(out, "granary: "):
			t.Fatalf("mount %s: %s", ref, out)
		case strings.Contains(out, "mounted at "+dir):
			return dir
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("never: %s is mounted", ref)
	return dir
}

// Each format is mounted through a node of its own, which has read nothing before.
func TestMountsAreWhatTheyUnpackTo(t *testing.T) {
	theLab(t)
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			every := 1
			if f.name == "zstd" {
				every = 50 // each takes all that is before it
			}
			i := 0
			dir := serve(t).mount(t, f.name+":v1")
			mounted, err := walk(dir, func(string) bool { i++; return i%every == 0 })
			if err != nil {
				t.Fatal(err)
			}
			checkListing(t, mounted, disk, f.seconds)
			if f.sparse && f.known != "erofs" && f.known != "squashfs" { // which have holes of their own
				checkHoles(t, dir)
			}
		})
	}
}

// checkHoles checks that files that are sparse in the tar are so in the mount, which umoci
// does not know.
func checkHoles(t *testing.T, dir string) {
	t.Helper()
	want := [][2]int64{{sparseAt, sparseAt + smallSize}, {sparseSize - smallSize, sparseSize}}
	for _, name := range []string{"opt/sparse-gnu", "opt/sparse-posix"} {
		if got := data(t, filepath.Join(dir, name)); !slices.Equal(got, want) {
			t.Errorf("%s has data at %d, want %d", name, got, want)
		}
	}
}

// data returns where a file has data, and not holes: from where to where, in bytes.
func data(t *testing.T, path string) (runs [][2]int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for end := int64(0); ; {
		at, err := f.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return runs
		} else if err != nil {
			t.Fatal(err)
		}
		if end, err = f.Seek(at, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		runs = append(runs, [2]int64{at, end})
	}
}
