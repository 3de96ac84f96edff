package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// treeOf lays one layer of entries over nothing.
func treeOf(t testing.TB, entries ...toc.Entry) *toc.Tree {
	t.Helper()
	var b toc.Builder
	for _, e := range entries {
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	table, err := b.Done()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := toc.Overlay([]*toc.Layer{{TOC: table}})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func dir(name string) toc.Entry {
	return toc.Entry{Name: name, Type: toc.Directory, Mode: 0o755, ModTime: time.Unix(1, 0)}
}

// file has content in all of its size bytes.
func file(name string, size int64) toc.Entry { return sparse(name, size, 0, size) }

// sparse has content where pairs of offset and size say.
func sparse(name string, size int64, at ...int64) toc.Entry {
	e := toc.Entry{Name: name, Type: toc.Regular, Mode: 0o644, Size: size, ModTime: time.Unix(1e9, 5)}
	for i := 0; i+1 < len(at) && at[i+1] > 0; i += 2 {
		e.Extents = append(e.Extents, toc.Extent{Offset: at[i], Size: at[i+1]})
	}
	return e
}

func link(name, to string) toc.Entry { return toc.Entry{Name: name, Type: toc.Hardlink, Link: to} }

func symlink(name, to string) toc.Entry {
	return toc.Entry{Name: name, Type: toc.Symlink, Link: to, Mode: 0o777}
}

// pattern are contents whose byte at i is i, and which remember what was read of them.
type pattern struct {
	reads []string
	err   error // of every read; nil for none
	wait  bool  // for the context's end
}

func (p *pattern) ReadAt(ctx context.Context, f *toc.File, b []byte, off int64) error {
	p.reads = append(p.reads, fmt.Sprintf("%s %d+%d", f.Name, off, len(b)))
	if p.wait {
		<-ctx.Done()
		return ctx.Err()
	}
	for i := range b {
		b[i] = byte(off + int64(i))
	}
	return p.err
}

func newFS(t testing.TB, contents Contents, entries ...toc.Entry) *FileSystem {
	t.Helper()
	f, err := New(Config{Tree: treeOf(t, entries...), Contents: contents})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// walk looks a path up as the kernel does.
func walk(t testing.TB, f *FileSystem, path string) gofuse.EntryOut {
	t.Helper()
	out := gofuse.EntryOut{NodeId: 1}
	for name := range strings.SplitSeq(path, "/") {
		in := gofuse.InHeader{NodeId: out.NodeId}
		out = gofuse.EntryOut{}
		if s := f.Lookup(nil, &in, name, &out); !s.Ok() || out.EntryTimeout() != time.Hour {
			t.Fatalf("lookup of %s in %s: %v, kept for %v", name, path, s, out.EntryTimeout())
		}
	}
	return out
}

func TestLookup(t *testing.T) {
	f := newFS(t, &pattern{},
		dir("d"), dir("d/sub"), file("d/sub/deep", 1), file("d-side", 7), dir("d/other"),
		file("d/f", 1000), link("again", "d/f"), symlink("s", "to/where"),
		toc.Entry{Name: "null", Type: toc.CharDevice, Major: 1, Minor: 300, Mode: 0o666},
		toc.Entry{Name: "setuid", Type: toc.Regular, Mode: 0o4711, UID: 70000, GID: 80000},
		dir("long"), file("long/"+strings.Repeat("n", 256), 1), file("long/"+strings.Repeat("n", 255), 2),
	)
	for path, want := range map[string]string{
		"d":                                "040755 4096 bytes, 0 sectors, 4 links",
		"d/sub":                            "040755 4096 bytes, 0 sectors, 2 links",
		"d/sub/deep":                       "100644 1 bytes, 1 sectors, 1 links",
		"d-side":                           "100644 7 bytes, 1 sectors, 1 links",
		"d/f":                              "100644 1000 bytes, 2 sectors, 2 links",
		"again":                            "100644 1000 bytes, 2 sectors, 2 links",
		"s":                                "120777 8 bytes, 0 sectors, 1 links",
		"null":                             "020666 0 bytes, 0 sectors, 1 links",
		"setuid":                           "104711 0 bytes, 0 sectors, 1 links",
		"long/" + strings.Repeat("n", 255): "100644 2 bytes, 1 sectors, 1 links",
	} {
		out := walk(t, f, path)
		if got := fmt.Sprintf("%06o %d bytes, %d sectors, %d links", out.Mode, out.Size, out.Blocks, out.Nlink); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
		var attr gofuse.AttrOut
		if s := f.GetAttr(nil, &gofuse.GetAttrIn{InHeader: gofuse.InHeader{NodeId: out.NodeId}}, &attr); !s.Ok() || attr.Attr != out.Attr || attr.Timeout() != time.Hour {
			t.Errorf("%s: attributes %+v and %+v", path, attr.Attr, out.Attr)
		}
	}
	for _, path := range []string{"none", "d/none", "d/sub/f", "d-side/x", "s/x", "long/" + strings.Repeat("n", 256)} {
		if out := walk(t, f, path); out.NodeId != 0 {
			t.Errorf("%s is there: %+v", path, out)
		}
	}
	if one, other := walk(t, f, "d/f"), walk(t, f, "again"); one.NodeId != other.NodeId || one.Ino != other.Ino {
		t.Errorf("two names of a file: %d and %d", one.Ino, other.Ino)
	}
	if got := walk(t, f, "setuid"); got.Uid != 70000 || got.Gid != 80000 {
		t.Errorf("owner %d:%d", got.Uid, got.Gid)
	}
	if got := walk(t, f, "null").Rdev; unix.Major(uint64(got)) != 1 || unix.Minor(uint64(got)) != 300 {
		t.Errorf("device %x", got)
	}
	if got := walk(t, f, "d/f"); got.Mtime != 1e9 || got.Mtimensec != 5 {
		t.Errorf("modified at %d.%09d", got.Mtime, got.Mtimensec)
	}
	if s := f.GetAttr(nil, &gofuse.GetAttrIn{InHeader: gofuse.InHeader{NodeId: 1000}}, new(gofuse.AttrOut)); s != gofuse.ENOENT {
		t.Errorf("a number that nothing has: %v", s)
	}
	if target, s := f.Readlink(nil, &gofuse.InHeader{NodeId: walk(t, f, "s").NodeId}); string(target) != "to/where" || !s.Ok() {
		t.Errorf("link to %q, %v", target, s)
	}
}

func TestListing(t *testing.T) {
	entries := []toc.Entry{dir("d"), symlink("d-link", "x"), file("d.txt", 1), dir("d/sub"), file("d/sub/in", 1), file("z", 1), link("again", "z")}
	for i := range 200 {
		entries = append(entries, file(fmt.Sprintf("d/sub-%03d", i), 1))
	}
	entries = append(entries, file(strings.Repeat("n", 256), 1))
	f := newFS(t, &pattern{}, entries...)
	if got, want := names(t, f, 1, 4096), ". .. again d d-link d.txt z"; got != want {
		t.Errorf("the root has %s, want %s", got, want)
	}
	sub := walk(t, f, "d").NodeId
	all := names(t, f, sub, 64<<10)
	if n := len(strings.Fields(all)); n != 203 {
		t.Errorf("%d names: %s", n, all)
	}
	for _, size := range []int{200, 333, 4096} { // which take many requests
		if got := names(t, f, sub, size); got != all {
			t.Errorf("by %d bytes: %s", size, got)
		}
	}
	if s := f.ReadDir(nil, &gofuse.ReadIn{InHeader: gofuse.InHeader{NodeId: walk(t, f, "z").NodeId}}, gofuse.NewDirEntryList(make([]byte, 100), 0)); s != gofuse.ENOTDIR {
		t.Errorf("a listing of a file: %v", s)
	}
}

// TestALayerAlone has hardlinks to files of other layers, which are nothing here.
func TestALayerAlone(t *testing.T) {
	var b toc.Builder
	for _, e := range []toc.Entry{link("elsewhere", "below"), file("f", 1), link("g", "f")} {
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	table, err := b.Done()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := toc.Alone(&toc.Layer{TOC: table})
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(Config{Tree: tree, Contents: &pattern{}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, f, 1, 4096), ". .. f g"; got != want {
		t.Errorf("it has %s, want %s", got, want)
	}
	if out := walk(t, f, "elsewhere"); out.NodeId != 0 {
		t.Errorf("elsewhere is there: %+v", out)
	}
}

// names lists a directory in requests of a size, both ways, and checks that what it says
// of each name is what a lookup says.
func names(t *testing.T, f *FileSystem, number uint64, size int) string {
	t.Helper()
	var plain, plus []string
	for off := uint64(0); ; {
		b := gofuse.NewDirEntryList(make([]byte, size), off)
		f.ReadDir(nil, &gofuse.ReadIn{InHeader: gofuse.InHeader{NodeId: number}, Offset: off}, b)
		entries, err := gofuse.ParseDirEntries(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			plain = append(plain, e.Name)
			off = e.Off
		}
	}
	for off := uint64(0); ; {
		b := gofuse.NewDirEntryList(make([]byte, size), off)
		f.ReadDirPlus(nil, &gofuse.ReadIn{InHeader: gofuse.InHeader{NodeId: number}, Offset: off}, b)
		entries, outs, err := gofuse.ParseDirLookupEntries(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			break
		}
		for i, e := range entries {
			plus, off = append(plus, e.Name), e.Off
			var want gofuse.EntryOut
			if e.Name != "." && e.Name != ".." {
				f.Lookup(nil, &gofuse.InHeader{NodeId: number}, e.Name, &want)
			}
			if outs[i] != want || want.Ino != 0 && e.Ino != want.Ino {
				t.Errorf("%s is listed as %+v, and looked up as %+v", e.Name, outs[i], want)
			}
		}
	}
	if !slices.Equal(plain, plus) {
		t.Errorf("listed as %v, and with attributes as %v", plain, plus)
	}
	return strings.Join(plain, " ")
}

// read reads as the kernel does.
func read(f *FileSystem, number uint64, off, size int, cancel chan struct{}) ([]byte, gofuse.Status) {
	result, s := f.Read(cancel, &gofuse.ReadIn{InHeader: gofuse.InHeader{NodeId: number}, Offset: uint64(off)}, make([]byte, size))
	if !s.Ok() {
		return nil, s
	}
	p, s := result.Bytes(nil)
	return p, s
}

func TestRead(t *testing.T) {
	const m = 1 << 20
	for _, x := range []struct {
		file      toc.Entry
		off, size int
		reads     string // of contents
	}{
		{file("f", 100), 0, 4096, "f 0+100"},
		{file("f", 100), 10, 20, "f 10+20"},
		{file("f", 100), 100, 20, ""},
		{file("f", 100), 5000, 20, ""},
		{sparse("f", 100), 0, 100, ""},
		{sparse("f", 4*m, m, 10, 3*m, 10), 0, 4 * m, "f 1048576+10, f 3145728+10"},
		{sparse("f", 4*m, m, 10, 3*m, 10), m + 5, m, "f 1048581+5"},
		{sparse("f", 4*m, m, 10, 3*m, 10), 2 * m, 100, ""},
		{sparse("f", 100, 10, 10, 30, 10, 40, 10), 0, 100, "f 10+40"},
		{sparse("f", 100, 0, 50, 50, 50), 40, 20, "f 40+20"},
		{sparse("f", m, 0, 10, 40000, 10), 5, 100, "f 5+100"},
	} {
		contents := &pattern{}
		f := newFS(t, contents, x.file)
		got, s := read(f, walk(t, f, "f").NodeId, x.off, x.size, nil)
		if reads := strings.Join(contents.reads, ", "); !s.Ok() || reads != x.reads {
			t.Errorf("%d+%d of %v: %v, reads %s, want %s", x.off, x.size, x.file.Extents, s, reads, x.reads)
		}
		want := make([]byte, max(0, min(x.size, int(x.file.Size)-x.off)))
		for _, r := range contents.reads {
			var off, n int
			fmt.Sscanf(r, "f %d+%d", &off, &n)
			for i := range n {
				want[off-x.off+i] = byte(off + i)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d+%d of %v: wrong bytes", x.off, x.size, x.file.Extents)
		}
	}
}

func TestAReadThatFails(t *testing.T) {
	for _, x := range []struct {
		err  error
		want gofuse.Status
	}{
		{errors.New("no luck"), gofuse.EIO},
		{fmt.Errorf("a 401: %w", fs.ErrPermission), gofuse.EACCES},
	} {
		f := newFS(t, &pattern{err: x.err}, file("f", 10))
		if _, s := read(f, walk(t, f, "f").NodeId, 0, 10, nil); s != x.want {
			t.Errorf("%v: %v, want %v", x.err, s, x.want)
		}
		if u := f.Usage(); u.Read != 0 || u.Fetched != 0 {
			t.Errorf("it counts: %+v", u)
		}
	}
	f := newFS(t, &pattern{}, dir("d"))
	if _, s := read(f, walk(t, f, "d").NodeId, 0, 10, nil); s != gofuse.EINVAL {
		t.Errorf("a directory is read: %v", s)
	}
}

func TestAReadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFS(t, &pattern{wait: true}, file("f", 10))
		number := walk(t, f, "f").NodeId
		begin := time.Now()
		if _, s := read(f, number, 0, 10, nil); s != gofuse.EIO || time.Since(begin) != 2*time.Minute {
			t.Errorf("%v after %v", s, time.Since(begin))
		}
		cancel := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(cancel) })
		begin = time.Now()
		if _, s := read(f, number, 0, 10, cancel); s != gofuse.EINTR || time.Since(begin) != time.Second {
			t.Errorf("interrupted: %v after %v", s, time.Since(begin))
		}
	})
}

func TestHoles(t *testing.T) {
	f := newFS(t, &pattern{}, sparse("f", 100, 10, 10, 20, 5, 50, 10), file("full", 10), sparse("hole", 10))
	for _, x := range []struct {
		file   string
		whence uint32
		off    uint64
		want   int64 // or -1 for ENXIO
	}{
		{"f", unix.SEEK_DATA, 0, 10}, {"f", unix.SEEK_DATA, 12, 12}, {"f", unix.SEEK_DATA, 25, 50}, {"f", unix.SEEK_DATA, 60, -1},
		{"f", unix.SEEK_HOLE, 0, 0}, {"f", unix.SEEK_HOLE, 10, 25}, {"f", unix.SEEK_HOLE, 55, 60}, {"f", unix.SEEK_HOLE, 100, -1},
		{"full", unix.SEEK_DATA, 3, 3}, {"full", unix.SEEK_HOLE, 3, 10}, {"hole", unix.SEEK_DATA, 0, -1}, {"hole", unix.SEEK_HOLE, 3, 3},
	} {
		var out gofuse.LseekOut
		s := f.Lseek(nil, &gofuse.LseekIn{InHeader: gofuse.InHeader{NodeId: walk(t, f, x.file).NodeId}, Offset: x.off, Whence: x.whence}, &out)
		if got := int64(out.Offset); x.want < 0 && s != gofuse.Status(unix.ENXIO) || x.want >= 0 && (!s.Ok() || got != x.want) {
			t.Errorf("%s: seek %d from %d: %d, %v; want %d", x.file, x.whence, x.off, got, s, x.want)
		}
	}
}

func TestExtendedAttributes(t *testing.T) {
	with := file("with", 1)
	with.Xattrs = map[string]string{"user.b": "bee", "user.a": ""}
	f := newFS(t, &pattern{}, with, file("without", 1))
	header := gofuse.InHeader{NodeId: walk(t, f, "with").NodeId}
	dest := make([]byte, 100)
	for name, want := range map[string]string{"user.b": "bee", "user.a": ""} {
		if n, s := f.GetXAttr(nil, &header, name, dest); string(dest[:n]) != want || !s.Ok() {
			t.Errorf("%s is %q, %v", name, dest[:n], s)
		}
	}
	if n, s := f.GetXAttr(nil, &header, "user.b", dest[:2]); n != 3 || s != gofuse.ERANGE {
		t.Errorf("into 2 bytes: %d, %v", n, s)
	}
	if _, s := f.GetXAttr(nil, &header, "user.c", dest); s != gofuse.ENODATA {
		t.Errorf("one that is not there: %v", s)
	}
	if n, s := f.ListXAttr(nil, &header, dest); string(dest[:n]) != "user.a\x00user.b\x00" || !s.Ok() {
		t.Errorf("names are %q, %v", dest[:n], s)
	}
	if n, s := f.ListXAttr(nil, &header, nil); n != 14 || s != gofuse.ERANGE {
		t.Errorf("size of the names: %d, %v", n, s)
	}
	none := newFS(t, &pattern{}, file("f", 1))
	if _, s := none.GetXAttr(nil, &gofuse.InHeader{NodeId: 2}, "user.a", dest); s != gofuse.ENOSYS {
		t.Errorf("where nothing has any: %v", s)
	}
}

func TestStatFs(t *testing.T) {
	f := newFS(t, &pattern{}, dir("d"), file("d/f", 5000), link("g", "d/f"), sparse("s", 1<<40, 0, 100))
	var out gofuse.StatfsOut
	f.StatFs(nil, nil, &out)
	if out.Files != 4 || out.Blocks != 2 || out.Bfree != 0 || out.NameLen != 255 {
		t.Errorf("%+v", out)
	}
	if u := f.Usage(); u.Content != 5100 {
		t.Errorf("%+v", u)
	}
}
