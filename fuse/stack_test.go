package fuse

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/treetest"
)

// stackVariable, beside [mountVariable], has this program mount a stack of layers in the
// directory "stack", and the tree of [toc.Overlay] in "all".
const stackVariable = "GRANARY_TEST_STACK"

// assembleCommand, as first argument, has this program assemble.
const assembleCommand = "assemble"

// ofLayers are contents that tell the layer and the name that they are of.
type ofLayers []*toc.Layer

func (l ofLayers) ReadAt(_ context.Context, f *toc.File, p []byte, off int64) error {
	sum := fnv.New32()
	fmt.Fprint(sum, slices.Index(l, f.Layer), f.Source)
	for i := range p {
		p[i] = byte(sum.Sum32()) + byte(off) + byte(i)
	}
	return nil
}

func serveStack(dir string) error {
	seed, err := strconv.ParseUint(os.Getenv(stackVariable), 10, 64)
	if err != nil {
		return err
	}
	layers := layersOf(seed)
	all, err := toc.Overlay(layers)
	if err != nil {
		return err
	}
	trees, err := toc.Lowers(layers)
	if err != nil {
		return err
	}
	cfg := StackConfig{Contents: ofLayers(layers), Assembler: []string{os.Args[0], assembleCommand}}
	for _, t := range trees {
		cfg.Layers = append(cfg.Layers, Layer{Tree: t})
	}
	stack, err := NewStack(cfg)
	if err != nil {
		return err
	}
	plain, err := New(Config{Tree: all, Contents: ofLayers(layers)})
	if err != nil {
		return err
	}
	return serveBoth(stack, plain, dir)
}

func serveBoth(stack *Stack, plain *FileSystem, dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ended, mounted := make(chan error, 2), make(chan struct{}, 2)
	go func() { ended <- stack.Serve(ctx, filepath.Join(dir, "stack"), func() { mounted <- struct{}{} }) }()
	go func() { ended <- plain.Serve(ctx, filepath.Join(dir, "all"), func() { mounted <- struct{}{} }) }()
	for range 2 {
		select {
		case err := <-ended:
			return err
		case <-mounted:
		}
	}
	fmt.Println("mounted")
	for range 2 {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

// layersOf returns an image of four layers with some hundred small trees in it, which
// do to each other whatever layers can do. Of them two tell what they remove by names, and
// two as overlayfs does. Each has a further name of a file of the lowest.
func layersOf(seed uint64) (layers []*toc.Layer) {
	random := rand.New(rand.NewPCG(seed, 0))
	all := make([][]toc.Entry, 4)
	for n := range all {
		all[n] = []toc.Entry{link(fmt.Sprintf("links/%d/g", n), "links/f")}
	}
	all[0] = append(all[0], file("links/f", 100))
	for i := range 400 {
		for n, entries := range randomLayers(random, fmt.Sprintf("%03d/", i), len(all)) {
			all[n] = append(all[n], entries...)
		}
	}
	for n, entries := range all {
		l, err := layerOf(n, entries)
		if err != nil {
			panic(err)
		}
		layers = append(layers, l)
	}
	return layers
}

// layerOf returns an image's nth layer.
func layerOf(n int, entries []toc.Entry) (*toc.Layer, error) {
	var b toc.Builder
	for _, e := range entries {
		if err := b.Add(e); err != nil {
			return nil, err
		}
	}
	table, err := b.Done()
	return &toc.Layer{TOC: table, Overlayfs: n%2 == 1}, err
}

// randomLayers returns what each layer has of one tree.
func randomLayers(random *rand.Rand, root string, n int) (all [][]toc.Entry) {
	var layers []*toc.Layer
	var below []string // names that hardlinks may be made to
	for len(layers) < n {
		entries := randomTree(random, root, len(layers)%2 == 1, below)
		l, err := layerOf(len(layers), entries)
		if err != nil { // symlinks in a circle
			continue
		}
		tree, err := toc.Overlay(append(slices.Clone(layers), l))
		if err != nil { // or a hardlink to what the layer itself removes
			continue
		}
		layers, all, below = append(layers, l), append(all, entries), nil
		for f := range tree.All() {
			if f.Type == toc.Regular {
				below = append(below, f.Name)
			}
		}
	}
	return all
}

// randomTree returns what a layer has of one tree, of directories a and b in each other,
// with files c and d in them.
func randomTree(random *rand.Rand, root string, overlayfs bool, below []string) (entries []toc.Entry) {
	var add func(at string, depth int)
	add = func(at string, depth int) {
		for _, name := range []string{"a", "b", "c", "d"} {
			path := at + name
			remove := func() {
				if overlayfs {
					entries = append(entries, toc.Entry{Name: path, Type: toc.CharDevice, ModTime: time.Unix(5, 0)})
				} else {
					entries = append(entries, toc.Entry{Name: at + ".wh." + name, Type: toc.Regular})
				}
			}
			isDir := name < "c" && depth < 3
			switch k := random.IntN(10); {
			case k < 3:
			case k == 3:
				remove()
			case k == 4 && !overlayfs:
				remove()
				fallthrough
			case k < 8 && isDir:
				d := dir(path)
				d.Mode, d.ModTime = 0o700|uint32(random.IntN(64)), time.Unix(random.Int64N(1e9), 0)
				switch opaque := random.IntN(5) == 0; {
				case opaque && overlayfs:
					d.Xattrs = map[string]string{"trusted.overlay.opaque": "y", "user.seen": "1"}
				case opaque:
					entries = append(entries, toc.Entry{Name: path + "/.wh..wh..opq", Type: toc.Regular})
				}
				if overlayfs || random.IntN(2) > 0 { // else it is left out
					entries = append(entries, d)
				}
				add(path+"/", depth+1)
			case k == 8 || k == 9 && isDir:
				to := []string{"a", "b", "a/../b", "/" + root + "a", "/../" + root + "b/b", fmt.Sprint("to/", random.IntN(100))}
				if depth > 0 { // from the top they would lead to what all trees share
					to = append(to, "../a", "../b/")
				}
				entries = append(entries, symlink(path, to[random.IntN(len(to))]))
			case k == 9 && len(below) > 0 && !overlayfs:
				to := below[random.IntN(len(below))]
				if strings.HasPrefix(to, root) && !slices.ContainsFunc(entries, func(e toc.Entry) bool { return strings.Contains(e.Name, ".wh.") }) {
					entries = append(entries, link(path, to))
				}
			default:
				f := file(path, random.Int64N(5000))
				f.ModTime = time.Unix(random.Int64N(1e9), 0)
				entries = append(entries, f)
			}
		}
	}
	entries = append(entries, dir(root))
	add(root, 0)
	return entries
}

// TestAStackOfLayersIsTheirOverlay has overlayfs lay over each other what this package
// lays over each other itself.
func TestAStackOfLayersIsTheirOverlay(t *testing.T) {
	for seed := range 2 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if n := throughSymlinks(t, layersOf(uint64(seed))); n < 20 {
				t.Errorf("%d files are where symlinks below their layer lead", n)
			}
			top := t.TempDir()
			for _, name := range []string{"stack", "all"} {
				if err := os.Mkdir(filepath.Join(top, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() {
				_ = unix.Unmount(filepath.Join(top, "stack"), unix.MNT_DETACH)
				_ = unix.Unmount(filepath.Join(top, "all"), unix.MNT_DETACH)
			})
			s := serveAt(t, top, stackVariable+"="+fmt.Sprint(seed))
			want, got := listing(t, filepath.Join(top, "all")), listing(t, filepath.Join(top, "stack"))
			if len(want) < 1000 {
				t.Errorf("there are %d names", len(want))
			}
			for i := range max(len(want), len(got)) {
				if i >= len(want) || i >= len(got) || want[i] != got[i] {
					t.Fatalf("overlayfs: %s\nhere:      %s", at(got, i), at(want, i))
				}
			}
			if err := s.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := s.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// throughSymlinks returns how many files are elsewhere than their layers have them.
func throughSymlinks(t *testing.T, layers []*toc.Layer) (n int) {
	t.Helper()
	tree, err := toc.Overlay(layers)
	if err != nil {
		t.Fatal(err)
	}
	for f := range tree.All() {
		if f.Type == toc.Regular && f.Links == 1 && f.Source != f.Name {
			n++
		}
	}
	return n
}

// TestAnAssemblerThatFails leaves nothing.
func TestAnAssemblerThatFails(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		assembler string
		want      string
	}{
		"it hangs":      {"exec sleep 1000", "deadline exceeded"},
		"it says why":   {"echo no luck; exit 1", "no luck"},
		"it does less":  {"exit 0", "mount of the layers"},
		"it cannot run": {"", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			assembler := []string{"/bin/sh", "-c", c.assembler}
			if c.assembler == "" {
				assembler = []string{"/none/such"}
			}
			tree := treeOf(t, dir("d"), file("d/f", 10))
			s, err := NewStack(StackConfig{Layers: []Layer{{Tree: tree}, {Image: &Image{Name: "i", Format: toc.EROFS, Size: 1}}}, Contents: &pattern{}, Images: &pattern{}, Assembler: assembler, AssembleTimeout: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			mnt := t.TempDir()
			before := livesNow(t)
			if err := s.Serve(t.Context(), mnt, func() { t.Error("mounted") }); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if m, ok := mountAt(mnt); ok || livesNow(t) != before {
				t.Errorf("left is %+v", m)
			}
		})
	}
}

func livesNow(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir(lives)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(all)
}

func TestStacksThatMakeNoSense(t *testing.T) {
	tree := treeOf(t, dir("d"))
	image := func(name string) *Image { return &Image{Name: name, Format: toc.EROFS, Size: 1} }
	for name, layers := range map[string][]Layer{
		"nothing":                   {},
		"an empty layer":            {{}},
		"a tree and an image":       {{Tree: tree, Image: image("i")}},
		"two images of one name":    {{Image: image("i")}, {Image: image("i")}},
		"an image in a directory":   {{Image: image("i/j")}},
		"an image of a parent":      {{Image: image("..")}},
		"an image without a name":   {{Image: image("")}},
		"an image with a long name": {{Image: image(strings.Repeat("i", 200))}},
		"an image of another kind":  {{Image: &Image{Name: "i", Format: toc.Tar, Size: 1}}},
		"an image without a size":   {{Image: &Image{Name: "i", Format: toc.EROFS, Size: -1}}},
	} {
		if _, err := NewStack(StackConfig{Layers: layers, Contents: &pattern{}, Images: &pattern{}, Assembler: []string{"true"}}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestPieces reads small parts by pieces, each of them once.
func TestPieces(t *testing.T) {
	from := &pattern{}
	f := &toc.File{Entry: toc.Entry{Name: "i", Size: 1<<20 + 100}}
	s := &pieces{from: from}
	for _, c := range []struct {
		off  int64
		size int
		want string // what is read for it
	}{
		{1024, 128, "i 0+65536"},
		{4096, 4096, ""},
		{pieceSize - 1, 2, "i 65536+65536"},
		{1 << 20, 100, "i 1048576+100"},
		{1<<20 + 50, 50, ""},
		{100, pieceSize, "i 100+65536"},
		{0, 1 << 20, "i 0+1048576"},
	} {
		from.reads = nil
		p := make([]byte, c.size)
		if err := s.ReadAt(t.Context(), f, p, c.off); err != nil || strings.Join(from.reads, " ") != c.want {
			t.Errorf("%d at %d: read %q, %v", c.size, c.off, from.reads, err)
		}
		for i := range p {
			if p[i] != byte(c.off+int64(i)) {
				t.Fatalf("%d at %d: byte %d is %d", c.size, c.off, i, p[i])
			}
		}
	}
	other := &toc.File{Entry: toc.Entry{Name: "j", Size: 100 * pieceSize}}
	for i := range int64(100) {
		if err := s.ReadAt(t.Context(), other, make([]byte, 1), i*pieceSize); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.kept) > keptPieces {
		t.Errorf("%d pieces are kept", len(s.kept))
	}
	from.err = errors.New("no luck")
	if err := s.ReadAt(t.Context(), other, make([]byte, 1), 0); !errors.Is(err, from.err) {
		t.Errorf("a piece that is gone: %v", err)
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing"
}

// linkCounts differ as [toc.Lowers] says, where a layer may remove names.
var linkCounts = regexp.MustCompile(`(?m)^("\d.*), \d+ names`)

func listing(t *testing.T, dir string) []string {
	t.Helper()
	list, err := treetest.Tree(dir, time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(linkCounts.ReplaceAllString(list, "$1"), "\n")
}
