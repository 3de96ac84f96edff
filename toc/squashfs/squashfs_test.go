package squashfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/squashfs"
	"github.com/granary-oci/granary/toc/treetest"
)

var update = flag.Bool("update", false, "make the images in testdata anew")

// kinds are the images that are read, by what mksquashfs is told.
var kinds = map[string]string{
	"gzip":      "-comp gzip",
	"lzo":       "-comp lzo",
	"xz":        "-comp xz",
	"lz4":       "-comp lz4 -Xhc",
	"zstd":      "-comp zstd",
	"stored":    "-noI -noD -noF -noX -noId",
	"fragments": "-b 4096 -always-use-fragments",
	"blocks":    "-b 1M -no-fragments",
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
	args := append([]string{dir, path, "-noappend", "-quiet", "-no-progress", "-mkfs-time", "0"}, strings.Fields(options)...)
	if out, err := exec.Command(tool(t, "mksquashfs"), args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs %s: %v\n%s", options, err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func makeTree(t *testing.T, large bool) string {
	t.Helper()
	tool(t, "mksquashfs")
	dir := t.TempDir()
	if err := treetest.Make(dir, large); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(image []byte) (*toc.Layer, error) {
	return squashfs.Open(bytes.NewReader(image), ocispec.Descriptor{Size: int64(len(image))})
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
	want, err := treetest.Tree(dir, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for name, options := range kinds {
		t.Run(name, func(t *testing.T) { has(t, pack(t, dir, options), want) })
	}
}

func golden(name string) string { return filepath.Join("testdata", name+".squashfs") }

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
	want, err := treetest.Tree(dir, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(list, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, options := range kinds {
		if err := os.WriteFile(golden(name), pack(t, dir, options+" -nopad"), 0o644); err != nil {
			t.Fatal(err)
		}
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

func TestWhatIsNotSquashfs(t *testing.T) {
	for _, image := range []string{"", "hsqs", strings.Repeat("x", 200)} {
		if _, err := open([]byte(image)); !errors.Is(err, toc.ErrFormat) {
			t.Errorf("%.10q: %v", image, err)
		}
	}
}

func TestCompressionsThatAreNotReadAreNamed(t *testing.T) {
	lzma := read(t, "gzip")
	lzma[20] = 2
	later := read(t, "gzip")
	later[20] = 9
	for name, image := range map[string][]byte{"lzma": lzma, "algorithm 9": later} {
		if _, err := open(image); !errors.Is(err, toc.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := makeTree(t, false)
	if _, err := open(pack(t, dir, "-comp xz -Xbcj x86")); !errors.Is(err, toc.ErrUnsupported) || !strings.Contains(err.Error(), "machine code") {
		t.Errorf("xz with a filter: %v", err)
	}
}

// TestHostileImages changes an image whose tables are of one block each, stored.
func TestHostileImages(t *testing.T) {
	le := binary.LittleEndian
	root := func(p []byte) []byte { return p[le.Uint64(p[64:])+2+le.Uint64(p[32:]):] }
	entry := func(p []byte, name string) []byte {
		dirs := p[le.Uint64(p[72:]):]
		return dirs[bytes.Index(dirs, []byte(name))-8:]
	}
	for name, test := range map[string]struct {
		edit func(p []byte)
		want error
	}{
		"version 3":                {func(p []byte) { p[28] = 3 }, toc.ErrUnsupported},
		"blocks of 3 bytes":        {func(p []byte) { le.PutUint32(p[12:], 3) }, toc.ErrMalformed},
		"blocks of 2^31 bytes":     {func(p []byte) { le.PutUint32(p[12:], 1<<31); p[22] = 31 }, toc.ErrMalformed},
		"more than there is":       {func(p []byte) { le.PutUint64(p[40:], 1<<63) }, toc.ErrMalformed},
		"inodes in the superblock": {func(p []byte) { le.PutUint64(p[64:], 5) }, toc.ErrMalformed},
		"inodes outside":           {func(p []byte) { le.PutUint64(p[64:], 1<<62) }, toc.ErrMalformed},
		"no ids":                   {func(p []byte) { p[26] = 0 }, toc.ErrMalformed},
		"ids outside":              {func(p []byte) { le.PutUint64(p[48:], uint64(len(p)-1)) }, toc.ErrMalformed},
		"fragments outside":        {func(p []byte) { le.PutUint64(p[80:], le.Uint64(p[40:])) }, toc.ErrMalformed},
		"attributes outside":       {func(p []byte) { le.PutUint64(p[56:], le.Uint64(p[40:])) }, toc.ErrMalformed},
		"a root outside":           {func(p []byte) { le.PutUint64(p[32:], 1<<63) }, toc.ErrMalformed},
		"a root of no type":        {func(p []byte) { root(p)[0] = 99 }, toc.ErrMalformed},
		"a root that is a file":    {func(p []byte) { root(p)[0] = 2 }, toc.ErrMalformed},
		"a root of 64 KiB":         {func(p []byte) { le.PutUint16(root(p)[24:], 0xffff) }, toc.ErrMalformed},
		"a directory that is above": {func(p []byte) {
			le.PutUint16(entry(p, "empty"), uint16(le.Uint64(p[32:])))
		}, toc.ErrMalformed},
		"a name that climbs":       {func(p []byte) { copy(entry(p, "empty")[8:], "../up") }, toc.ErrMalformed},
		"names that do not ascend": {func(p []byte) { copy(entry(p, "empty")[8:], "A") }, toc.ErrMalformed},
		"metadata of no bytes":     {func(p []byte) { le.PutUint16(p[le.Uint64(p[64:]):], 0x8000) }, toc.ErrMalformed},
	} {
		image := read(t, "stored")
		test.edit(image)
		if _, err := open(image); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

func TestMetadataThatIsClaimedIsNotAllocated(t *testing.T) {
	image := read(t, "gzip")
	for used, want := range map[uint64]error{100 << 20: io.ErrUnexpectedEOF, 1 << 40: toc.ErrLimit} {
		binary.LittleEndian.PutUint64(image[40:], used)
		if _, err := squashfs.Open(bytes.NewReader(image), ocispec.Descriptor{Size: 1 << 40}); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", used, err)
		}
	}
}

func TestALayerThatCannotBeReadIsNotMalformed(t *testing.T) {
	image := read(t, "gzip")
	down := errors.New("the network is down")
	for reads := range 2 {
		r := &treetest.Failing{R: bytes.NewReader(image), After: reads, Err: down}
		_, err := squashfs.Open(r, ocispec.Descriptor{Size: int64(len(image))})
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
	image := read(t, "stored")
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
	for _, name := range []string{"gzip", "stored"} {
		image := pack(t, dir, kinds[name])
		c := &treetest.Counting{R: bytes.NewReader(image)}
		l, err := squashfs.Open(c, ocispec.Descriptor{Size: int64(len(image))})
		if err != nil {
			t.Fatal(err)
		}
		if moved := c.Bytes.Load(); moved > 1<<20 {
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

func FuzzOpen(f *testing.F) {
	for name := range kinds {
		f.Add(read(f, name))
	}
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
