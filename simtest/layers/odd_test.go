package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// layered makes an image of tars, and pushes it.
func (l *lab) layered(t *testing.T, name string, layers ...[]byte) *image {
	t.Helper()
	img := &image{name: name}
	var diffIDs []digest.Digest
	for _, layer := range layers {
		desc, err := l.addBytes(tarType, layer)
		if err != nil {
			t.Fatal(err)
		}
		img.layers, diffIDs = append(img.layers, desc), append(diffIDs, desc.Digest)
	}
	l.finishAndPush(t, img, diffIDs...)
	return img
}

func (e entry) time(at time.Time) entry {
	e.ModTime = at
	return e
}

// oddBase is what oddChanges are made to.
func oddBase() []entry {
	return []entry{
		dir("kept"), file("kept/one", "1"), file("kept/two", "2"),
		dir("emptied"), dir("emptied/sub"), file("emptied/sub/file", "x"),
		dir("replaced"), file("replaced/file", "x"),
		file("linked", "by a layer above"), symlink("target", "linked"),
	}
}

// oddChanges are entries that are named, linked and dated as only few programs do.
func oddChanges() []entry {
	return []entry{
		// Names that lead elsewhere, and several entries of one name.
		file("../../../climbed", "1"), file("inside/../../../climbed-too", "2"), file("/rooted/file", "3"), file("./dotted//twice/file", "4"),
		file("twice", "first"), file("twice", "the last"),
		dir("was-dir"), file("was-dir/file", "x"), file("was-dir", "a file now"),
		file("was-file", "x"), dir("was-file"), file("was-file/file", "y"),
		symlink("was-link", "kept"), file("was-link", "no link"),
		symlink("here", "kept"), file("here/beside", "z"),
		// Whiteouts of what is there, and of what is not.
		file("kept/.wh.two", ""), file("kept/.wh.three", ""), file(".wh.nothing", ""),
		dir("emptied"), file("emptied/.wh..wh..opq", ""), file("emptied/new", "n"),
		dir("bare"), file("bare/.wh..wh..opq", ""),
		file(".wh.replaced", ""), dir("replaced"), file("replaced/other", "o"),
		// Links.
		hardlink("hard", "linked"), hardlink("hard-too", "hard"), hardlink("hard-symlink", "target"),
		symlink("self", "self"), symlink("ping", "pong"), symlink("pong", "ping"), symlink("out", "../../../../etc/passwd"),
		symlink("odd-link", "\xffnot\xfeUTF-8"),
		// Names.
		file("latin1-\xe9\xff", "x"), file("C1-\xc2\x85-\xe2\x80\xae", "x"), file("\\octal\\040", "x"), file("-rf", "x"), file("tab\tline\n", "x"), file(" ", "blank"),
		file("upper\xcc\x88", "decomposed"), file("upper\xc3\xbc", "composed"),
		file("n"+strings.Repeat("x", 254), "as long as may be"),
		// Modes, owners and devices.
		file("set-uid", "x").mode(0o4755).owner(12, 34), file("set-gid", "x").mode(0o2755), dir("sticky").mode(0o1777), file("none", "x").mode(0),
		file("far-owner", "x").owner(1<<31, 1<<31+5).mode(0o640),
		device(tar.TypeChar, "null", 1, 3).mode(0o666), device(tar.TypeBlock, "disk", 4095, 1048575), device(tar.TypeFifo, "fifo", 0, 0), device(tar.TypeChar, "zero-zero", 0, 0),
		hardlink("null-too", "null"),
		// Attributes.
		file("able", "x").xattr("security.capability", capability).xattr("user.text", strings.Repeat("v", 60)),
		symlink("trusted-link", "able").xattr("trusted.note", "of a link"),
		dir("user.d").xattr("user.d", "\x00binary\xff"),
		dir("overlay").xattr("trusted.overlay.opaque", "y").xattr("trusted.overlay.redirect", "/kept"), file("overlay/file", "x").xattr("trusted.overlay.metacopy", ""),
		// Times.
		file("before-1970", "x").time(time.Unix(-86400*365, 0)), file("before-1970-nanos", "x").time(time.Unix(-2, 250000000)),
		file("epoch", "x").time(time.Unix(0, 0)), file("nanos", "x").time(time.Unix(1, 1)), file("after-2038", "x").time(time.Unix(1<<32+5, 999999999)),
		file("gnu-before", "x").time(time.Unix(-12345, 0)).gnu(), file("gnu-after", "x").time(time.Unix(1<<33+5, 0)).gnu(),
	}
}

// A mount shows of entries that are odd what umoci unpacks them to, and so does an
// overlay on it.
func TestOddEntriesInAMount(t *testing.T) {
	l := theLab(t)
	img := l.layered(t, "odd/entries", tarOf(t, oddBase()...), tarOf(t, oddChanges()...))
	want, err := l.unpackImage(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/rooted", "/dotted", "/dotted/twice"} { // which have no entries
		want[name].ModTime = time.Unix(0, 0)
	}
	mounted := serve(t).mount(t, "odd/entries:v1")
	above := overlayOn(t, mounted)
	for _, name := range []string{"self", "ping"} {
		if _, err := os.ReadFile(filepath.Join(mounted, name)); !errors.Is(err, syscall.ELOOP) {
			t.Errorf("a loop of symlinks is read: %v", err)
		}
	}
	checkTree(t, mounted, want)
	delete(want, "/zero-zero") // to overlayfs it is a whiteout
	checkTree(t, above, want)
}

// overlayOn lays an empty directory over a mount until the test ends.
func overlayOn(t *testing.T, lower string) (merged string) {
	t.Helper()
	top := t.TempDir()
	for _, name := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(top, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged = filepath.Join(top, "merged")
	err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+",upperdir="+filepath.Join(top, "upper")+",workdir="+filepath.Join(top, "work"))
	if err != nil {
		t.Fatal("overlay: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return merged
}

// checkTree compares all that is in a directory with what is wanted there.
func checkTree(t *testing.T, dir string, want map[string]*found) {
	t.Helper()
	got, err := walk(dir, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	checkListing(t, got, want, false)
}

// sparseFiles makes files with holes in all places, and of many pieces.
func sparseFiles(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	const block = 64 << 10
	data := bytes.Repeat([]byte("data"), block/4)
	for name, blocks := range map[string]string{
		"middle": ".x.", "ends": "x..x", "start": "x...", "end": "...x", "hole": "....", "full": "xx",
		"many": strings.Repeat("x.", 60) + ".", "odd-size": ".x.!", "empty": "",
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		size := int64(len(blocks) * block)
		for i, b := range blocks {
			switch b {
			case 'x':
				_, err = f.WriteAt(data, int64(i*block))
			case '!':
				_, err = f.WriteAt([]byte("end"), int64(i*block)+1001)
				size = int64(i*block) + 1004
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(size), os.Chtimes(f.Name(), then, then)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A mount shows of sparse files, in each way that GNU tar has of writing them, what GNU
// tar unpacks them to.
func TestSparseFilesInAMount(t *testing.T) {
	l := theLab(t)
	from := sparseFiles(t)
	n := serve(t)
	for name, how := range map[string][]string{
		"old-gnu": {"--format=gnu"}, "pax-0.0": {"--format=posix", "--sparse-version=0.0"},
		"pax-0.1": {"--format=posix", "--sparse-version=0.1"}, "pax-1.0": {"--format=posix", "--sparse-version=1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--create", "--sparse", "--numeric-owner", "--directory", from, "."}, how...)
			layer, err := exec.Command("tar", args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			l.layered(t, "odd/"+name, layer)
			unpacked := t.TempDir()
			cmd := exec.Command("tar", "--extract", "--numeric-owner", "--same-owner", "--same-permissions", "--directory", unpacked)
			cmd.Stdin = bytes.NewReader(layer)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, out)
			}
			mounted := n.mount(t, "odd/"+name+":v1")
			want, err := walk(unpacked, func(string) bool { return true })
			if err != nil {
				t.Fatal(err)
			}
			checkTree(t, mounted, want)
			files, err := os.ReadDir(unpacked)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				if got, want := data(t, filepath.Join(mounted, f.Name())), data(t, filepath.Join(unpacked, f.Name())); !slices.Equal(got, want) {
					t.Errorf("%s has data at %d, want %d", f.Name(), got, want)
				}
			}
		})
	}
}
