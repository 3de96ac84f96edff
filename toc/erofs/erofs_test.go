package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/erofs"
	"github.com/granary-oci/granary/toc/treetest"
)

var update = flag.Bool("update", false, "make the images in testdata anew")

// kinds are the images that are read, by what mkfs.erofs is told.
var kinds = map[string]string{
	"plain":    "",
	"noinline": "-Enoinline_data",
	"chunks":   "--chunksize=4096",
	"indexes":  "--chunksize=65536 -Eforce-chunk-indexes",
	"shared":   "-x1",
}

// tool returns the path of a program. Without it, or without root, which makes
// devices, the test is skipped, but fails in CI.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if os.Geteuid() != 0 {
		err = errors.New("it takes root")
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
	return path
}

// pack makes an image of a tree.
func pack(t *testing.T, dir, options string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	args := append(strings.Fields(options), "--quiet", "-U00000000-0000-0000-0000-000000000000", path, dir)
	if out, err := exec.Command(tool(t, "mkfs.erofs"), args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs %s: %v\n%s", options, err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func makeTree(t *testing.T, large bool) string {
	t.Helper()
	tool(t, "mkfs.erofs")
	dir := t.TempDir()
	if err := treetest.Make(dir, large); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(image []byte) (*toc.Layer, error) {
	return erofs.Open(bytes.NewReader(image), ocispec.Descriptor{Size: int64(len(image))})
}

// has checks that an image has what a list says.
func has(t *testing.T, image []byte, want string) {
	t.Helper()
	l, err := open(image)
	if err != nil {
		t.Fatal(err)
	}
	if !l.Overlayfs {
		t.Error("its whiteouts are not those of overlayfs")
	}
	got, err := treetest.Layer(l)
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			t.Fatalf("line %d:\n got %.500s\nwant %.500s", i, gotLines[i], wantLines[i])
		}
	}
	if len(gotLines) != len(wantLines) {
		t.Fatalf("%d lines, want %d", len(gotLines), len(wantLines))
	}
}

func TestEverythingInATreeIsInItsImage(t *testing.T) {
	dir := makeTree(t, true)
	want, err := treetest.Tree(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, options := range kinds {
		t.Run(name, func(t *testing.T) { has(t, pack(t, dir, options), want) })
	}
}

func golden(name string) string { return filepath.Join("testdata", name+".erofs") }

func TestGoldenImages(t *testing.T) {
	list := filepath.Join("testdata", "tree.txt")
	if *update {
		remake(t, list)
	}
	want, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	for name := range kinds {
		t.Run(name, func(t *testing.T) { has(t, read(t, name), string(want)) })
	}
}

func remake(t *testing.T, list string) {
	dir := makeTree(t, false)
	want, err := treetest.Tree(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(list, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, options := range kinds {
		if err := os.WriteFile(golden(name), pack(t, dir, options), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etc/text", "etc/sparse"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(golden("tiny"), pack(t, dir, ""), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	image, err := os.ReadFile(golden(name))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestWhatIsNotEROFS(t *testing.T) {
	for _, image := range []string{"", "\xe2\xe1\xf5\xe0", strings.Repeat("x", 2000)} {
		if _, err := open([]byte(image)); !errors.Is(err, toc.ErrFormat) {
			t.Errorf("%.10q: %v", image, err)
		}
	}
}

func TestCompressionIsNamed(t *testing.T) {
	dir := makeTree(t, false)
	_, err := open(pack(t, dir, "-zlz4"))
	if !errors.Is(err, toc.ErrUnsupported) || !strings.Contains(err.Error(), "lz4") {
		t.Error(err)
	}
}

func TestAnImageOfWhichNothingIsCompressedIsRead(t *testing.T) {
	image := read(t, "plain")
	image[1024+80] |= 1 // lz4
	if _, err := open(image); err != nil {
		t.Error(err)
	}
}

// TestShortInodes is for those that have no time of their own, and small ids.
func TestShortInodes(t *testing.T) {
	dir := makeTree(t, false)
	if err := os.Chown(filepath.Join(dir, "a/setuid"), 7, 8); err != nil {
		t.Fatal(err)
	}
	tree, err := treetest.Tree(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	times := regexp.MustCompile(`2001-02-03T[0-9:.]+Z`)
	image := pack(t, dir, "-T1000000000 -Eforce-inode-compact")
	has(t, image, times.ReplaceAllString(tree, "2001-09-09T01:46:40Z"))
}

func TestAWrappedImageIsNamed(t *testing.T) {
	image := read(t, "plain")
	desc := ocispec.Descriptor{MediaType: "application/vnd.erofs.layer.v1+zstd", Size: int64(len(image))}
	if _, err := erofs.Open(bytes.NewReader(image), desc); !errors.Is(err, toc.ErrUnsupported) || !strings.Contains(err.Error(), "zstd") {
		t.Error(err)
	}
}

func TestContentOnAnotherDevice(t *testing.T) {
	dir := makeTree(t, false)
	blob := filepath.Join(t.TempDir(), "blob")
	image := pack(t, dir, "--chunksize=4096 --blobdev="+blob)
	if _, err := open(image); !errors.Is(err, toc.ErrUnsupported) || !strings.Contains(err.Error(), "device 1") {
		t.Error(err)
	}
}

// TestContentBehindTheImage is how a tar follows the image that indexes it.
func TestContentBehindTheImage(t *testing.T) {
	dir := makeTree(t, false)
	want, err := treetest.Tree(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "blob")
	image := pack(t, dir, "--chunksize=4096 --blobdev="+path)
	blob, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	slot := int(le.Uint16(image[1024+88:])) * 128
	le.PutUint32(image[slot+68:], uint32(len(image)/4096))
	has(t, append(image, blob...), want)
}

// TestHostileImages changes an image in which the root's entries follow its inode.
func TestHostileImages(t *testing.T) {
	le := binary.LittleEndian
	const sb = 1024
	root := func(image []byte) int { return int(le.Uint32(image[sb+40:]))*4096 + int(le.Uint16(image[sb+14:]))*32 }
	entries := func(image []byte) []byte { return image[root(image)+64:] }
	for name, test := range map[string]struct {
		edit func(image []byte)
		want error
	}{
		"blocks of 8 bytes":     {func(p []byte) { p[sb+12] = 3 }, toc.ErrMalformed},
		"blocks of 2^40 bytes":  {func(p []byte) { p[sb+12] = 40 }, toc.ErrMalformed},
		"unknown features":      {func(p []byte) { le.PutUint32(p[sb+80:], 1<<30) }, toc.ErrUnsupported},
		"blocks of 48 bits":     {func(p []byte) { le.PutUint32(p[sb+80:], 0x80) }, toc.ErrUnsupported},
		"a root outside":        {func(p []byte) { le.PutUint16(p[sb+14:], 0xffff) }, toc.ErrMalformed},
		"metadata outside":      {func(p []byte) { le.PutUint32(p[sb+40:], 0xffffffff) }, toc.ErrMalformed},
		"a root of 2^63 bytes":  {func(p []byte) { le.PutUint64(p[root(p)+8:], 1<<63) }, toc.ErrLimit},
		"a root of 2^40 bytes":  {func(p []byte) { le.PutUint64(p[root(p)+8:], 1<<40) }, toc.ErrMalformed},
		"a root that is a file": {func(p []byte) { le.PutUint16(p[root(p)+4:], 0x8000) }, toc.ErrMalformed},
		"a root of no type":     {func(p []byte) { le.PutUint16(p[root(p)+4:], 0) }, toc.ErrMalformed},
		"a layout that is none": {func(p []byte) { p[root(p)] |= 7 << 1 }, toc.ErrMalformed},
		"a root across blocks":  {func(p []byte) { le.PutUint64(p[root(p)+8:], 4095) }, toc.ErrMalformed},
		"chunks without end": {func(p []byte) {
			p[root(p)] = 1 | 4<<1
			le.PutUint32(p[root(p)+16:], 0)
			le.PutUint64(p[root(p)+8:], 1<<42)
		}, toc.ErrLimit},
		"attributes without end":     {func(p []byte) { le.PutUint16(p[root(p)+2:], 0xffff) }, toc.ErrMalformed},
		"a directory that is above":  {func(p []byte) { le.PutUint64(entries(p)[2*12:], uint64(le.Uint16(p[sb+14:]))) }, toc.ErrMalformed},
		"an inode outside":           {func(p []byte) { le.PutUint64(entries(p)[2*12:], 1<<62) }, toc.ErrMalformed},
		"no names":                   {func(p []byte) { le.PutUint16(entries(p)[8:], 0) }, toc.ErrMalformed},
		"names outside":              {func(p []byte) { le.PutUint16(entries(p)[8:], 12000) }, toc.ErrMalformed},
		"names that overlap":         {func(p []byte) { le.PutUint16(entries(p)[3*12+8:], 0xfff0) }, toc.ErrMalformed},
		"a name that climbs":         {func(p []byte) { copy(entries(p)[le.Uint16(entries(p)[4*12+8:]):], "e/..") }, toc.ErrMalformed},
		"names that do not ascend":   {func(p []byte) { copy(entries(p)[le.Uint16(entries(p)[4*12+8:]):], "ZZ") }, toc.ErrMalformed},
		"a directory of other block": {func(p []byte) { p[sb+90] = 1 }, toc.ErrUnsupported},
	} {
		image := read(t, "plain")
		test.edit(image)
		if _, err := open(image); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

func TestALayerThatCannotBeReadIsNotMalformed(t *testing.T) {
	image := read(t, "plain")
	down := errors.New("the network is down")
	for reads := range 1 {
		r := &treetest.Failing{R: bytes.NewReader(image), After: reads, Err: down}
		_, err := erofs.Open(r, ocispec.Descriptor{Size: int64(len(image))})
		if !errors.Is(err, down) || errors.Is(err, toc.ErrMalformed) || errors.Is(err, toc.ErrFormat) {
			t.Errorf("after %d reads: %v", reads, err)
		}
	}
	l, err := open(image)
	if err != nil {
		t.Fatal(err)
	}
	e, _ := l.Lookup("etc/hello")
	if e.Type == toc.Hardlink {
		e, _ = l.Lookup(e.Link)
	}
	on := l.On(&treetest.Failing{Err: down})
	if _, err := toc.Open(on, &e, nil).ReadAt(make([]byte, 1), 0); !errors.Is(err, down) || errors.Is(err, toc.ErrMalformed) {
		t.Error(err)
	}
}

func TestReaders(t *testing.T) {
	for name := range kinds {
		l, err := open(read(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := treetest.CheckReaders(l); err != nil {
			t.Error(err)
		}
	}
}

func TestATruncatedLayerEndsUnexpectedly(t *testing.T) {
	image := read(t, "noinline")
	l, err := open(image)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.On(bytes.NewReader(nil)).Inflate(toc.Extent{Size: 5, Start: 100, End: 105}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
}

// TestASmallPartIsMoved also tells how much, with -v.
func TestASmallPartIsMoved(t *testing.T) {
	dir := makeTree(t, true)
	if err := os.WriteFile(filepath.Join(dir, "letters"), treetest.Letters(40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "noinline"} {
		image := pack(t, dir, kinds[name])
		c := &treetest.Counting{R: bytes.NewReader(image)}
		l, err := erofs.Open(c, ocispec.Descriptor{Size: int64(len(image))})
		if err != nil {
			t.Fatal(err)
		}
		if moved := c.Bytes.Load(); moved > 4<<20 { // inodes lie between the content of small files
			t.Errorf("%s: opening moved %d bytes", name, moved)
		}
		t.Logf("%s: %d bytes, open: %v", name, len(image), c)
		for _, n := range []int64{4 << 10, 40 << 20} {
			e, _ := l.Lookup("letters")
			if _, err := toc.Open(l, &e, nil).ReadAt(make([]byte, n), 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if moved := c.Bytes.Load(); moved > n+1<<20 {
				t.Errorf("%s: reading %d bytes moved %d", name, n, moved)
			}
			t.Logf("%s: read %d: %v", name, n, c)
		}
	}
}

// FuzzOpen begins with an image of one block, for larger ones take long to be made
// smaller.
func FuzzOpen(f *testing.F) {
	f.Add(read(f, "tiny"))
	f.Fuzz(func(t *testing.T, image []byte) {
		l, err := open(image)
		if err != nil {
			if !errors.Is(err, toc.ErrFormat) && !errors.Is(err, toc.ErrMalformed) && !errors.Is(err, toc.ErrLimit) && !errors.Is(err, toc.ErrUnsupported) {
				t.Fatal(err)
			}
			return
		}
		for e := range l.All() {
			if len(e.Extents) > 0 {
				p := make([]byte, 10)
				toc.Open(l, &e, nil).ReadAt(p, e.Size/2)
			}
		}
	})
}
