package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// manySize is more than fits into 32 bits, in pieces that are compressed one by one.
const manySize = 4<<30 + 64<<20

// manyMembers is a tar+gzip with a file of manySize zeros, and one behind it.
func manyMembers(t *testing.T) []byte {
	t.Helper()
	header := tarOf(t, file("zeros", "").gnu())[:512]
	copy(header[124:136], "\x80\x00\x00\x00\x00\x00\x00\x01\x04\x00\x00\x00") // a number that is not octal
	checkSum(header)
	layer := packed(t, byGzip, header)
	layer = append(layer, repeated(t, byGzip, make([]byte, 1<<20), manySize)...)
	return append(layer, packed(t, byGzip, tarOf(t, file("behind", "there")))...)
}

// Files of more than 4 GiB, with holes and without, can be read at their ends.
func TestLargeFilesInAMount(t *testing.T) {
	l := theLab(t)
	n := serve(t)
	l.layered(t, "odd/large-sparse", tarOf(t, sparse("file")))
	l.single(t, "odd/large", gzipType, manyMembers(t), nil)
	for image, c := range map[string]struct {
		file string
		size int64
		end  string
	}{
		"odd/large-sparse": {"file", 4<<30 + 1, "\x00\x00!"},
		"odd/large":        {"zeros", manySize, "\x00\x00\x00"},
	} {
		f, err := os.Open(filepath.Join(n.mount(t, image+":v1"), c.file))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		at, err := f.Seek(-3, io.SeekEnd)
		p, rerr := io.ReadAll(f)
		if err := errors.Join(err, rerr); err != nil || at != c.size-3 || string(p) != c.end {
			t.Errorf("%s: at %d there is %q, %v", image, at, p, err)
		}
		p = make([]byte, 4096)
		if _, err := f.ReadAt(p, 4<<30-4096); err != nil || !bytes.Equal(p, make([]byte, 4096)) {
			t.Errorf("%s: before 4 GiB there is %.20q, %v", image, p, err)
		}
	}
}

// What no program could use is not there, and what is beside it is.
func TestNamesThatAreTooLong(t *testing.T) {
	l := theLab(t)
	longest, long := strings.Repeat("x", 255), strings.Repeat("y", 256)
	target := strings.Repeat("z", unix.PathMax-1)
	l.layered(t, "odd/names", tarOf(t, file(longest, "1"), file(long, "2"), dir("dir"+long), file("dir"+long+"/file", "3"), hardlink("hard", long),
		symlink("link", target), symlink("link-too-long", target+"z")))
	mounted := serve(t).mount(t, "odd/names:v1")
	entries, err := os.ReadDir(mounted)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"hard", "link", "link-too-long", longest}; !slices.Equal(names, want) {
		t.Errorf("listed are %q", names)
	}
	if p, err := os.ReadFile(filepath.Join(mounted, "hard")); string(p) != "2" {
		t.Errorf("a further name of what has too long a one: %q, %v", p, err)
	}
	if got, err := os.Readlink(filepath.Join(mounted, "link")); got != target {
		t.Errorf("the link is of %d bytes, %v", len(got), err)
	}
	if _, err := os.Readlink(filepath.Join(mounted, "link-too-long")); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a link that is too long: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(mounted, long)); err == nil {
		t.Error("a name that is too long is found")
	}
}

// An image with a layer that makes no sense is not mounted, and it is said why.
func TestWhatIsNotMounted(t *testing.T) {
	n := serve(t)
	for _, h := range hostiles {
		if h.says == "" || h.name == "toc-bomb" { // which takes its time
			continue
		}
		if h.mediaType == "" {
			h.mediaType = tarType
		}
		img := theLab(t).single(t, "unmounted/"+h.name, h.mediaType, h.layer(t), nil)
		dir := t.TempDir()
		if _, err := n.run(t.Context(), "mount", img.name+":v1", dir); err == nil || !strings.Contains(err.Error(), h.says) {
			t.Errorf("%s: got %v, want an error that says %q", h.name, err, h.says)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Errorf("%s: %q is there, %v", h.name, list, err)
		}
	}
}

// What is mounted keeps its names when its table turns out to disagree with the layer, and
// gives nothing but what they say. A new mount shows the layer.
func TestATableThatDisagreesWithAMountedLayer(t *testing.T) {
	n := serve(t)
	read, unread := disagreeing(t, "mounted-and-read", padding), disagreeing(t, "mounted", padding)
	before := n.mount(t, read.name+":v1")
	expect(t, filepath.Join(before, "shown"), "of mounted-and-read")
	beforeUnread := n.mount(t, unread.name+":v1")
	for i, img := range []*image{read, unread} {
		n.mustRun(t, "pull", img.name+":v1")
		n.eventually(t, "the listing is that of the tar", func() bool { return strings.Contains(string(n.mustRun(t, "ls", img.name+":v1")), "there\n") })
		metrics, _, err := fetch(t.Context(), n.admin+"/metrics")
		if want := fmt.Sprintf("granary_corrupt_total{source=\"table\"} %d\n", i+1); err != nil || !bytes.Contains(metrics, []byte(want)) {
			t.Errorf("there is no %q in the metrics, %v", want, err)
		}
		after := n.mount(t, img.name+":v1")
		expect(t, filepath.Join(after, "there"), "of "+strings.TrimPrefix(img.name, "hostile/"))
		expectError(t, filepath.Join(after, "shown"), unix.ENOENT)
	}
	expect(t, filepath.Join(before, "shown"), "of mounted-and-read") // the kernel has it
	if p, err := os.ReadFile(filepath.Join(beforeUnread, "shown")); string(p) != "of mounted" && !errors.Is(err, unix.EIO) {
		t.Errorf("what was mounted, and not read, is %q, %v", p, err) // it may have been fetched ahead
	}
	expectError(t, filepath.Join(beforeUnread, "there"), unix.ENOENT)
}

func expect(t *testing.T, path, want string) {
	t.Helper()
	if p, err := os.ReadFile(path); string(p) != want || err != nil {
		t.Errorf("%s: %q, %v; want %q", path, p, err, want)
	}
}

func expectError(t *testing.T, path string, want error) {
	t.Helper()
	if p, err := os.ReadFile(path); !errors.Is(err, want) {
		t.Errorf("%s: %q, %v; want %v", path, p, err, want)
	}
}
