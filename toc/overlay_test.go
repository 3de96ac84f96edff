package toc

import (
	"errors"
	"fmt"

	"slices"
	"strings"
	"testing"
	"time"
)

// The tests say what a layer has, entry by entry, and what is seen of several.

var day = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

func dir(name string) Entry { return Entry{Name: name, Type: Directory, Mode: 0o755, ModTime: day} }
func file(name, content string) Entry {
	e := Entry{Name: name, Type: Regular, Mode: 0o644, ModTime: day, Size: int64(len(content))}
	if content != "" {
		e.Extents = []Extent{{Size: e.Size, End: e.Size, Digest: sumOf(content)}}
	}
	return e
}
func symlink(name, to string) Entry {
	return Entry{Name: name, Type: Symlink, Mode: 0o777, ModTime: day, Link: to}
}
func hardlink(name, to string) Entry {
	return Entry{Name: name, Type: Hardlink, ModTime: day, Link: to}
}
func char(name string, major, minor uint32) Entry {
	return Entry{Name: name, Type: CharDevice, ModTime: day, Major: major, Minor: minor}
}
func with(e Entry, attr, value string) Entry {
	e.Xattrs = map[string]string{attr: value}
	return e
}
func mode(e Entry, m uint32) Entry { e.Mode = m; return e }

func table(t testing.TB, entries ...Entry) *TOC {
	t.Helper()
	got, err := build(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func build(entries ...Entry) (*TOC, error) {
	var b Builder
	for _, e := range entries {
		if err := b.Add(e); err != nil {
			return nil, err
		}
	}
	return b.Done()
}

func layer(t testing.TB, entries ...Entry) *Layer { return &Layer{TOC: table(t, entries...)} }

func overlayfs(l *Layer) *Layer { l.Overlayfs = true; return l }

// tell describes a file in a word: its name, and what it is.
func tell(f File) string {
	text := f.Name
	switch f.Type {
	case Directory:
		text += "/"
	case Symlink:
		text += "->" + f.Link
	case Regular:
		text += fmt.Sprintf("=%d", f.Size)
	default:
		text += "!" + f.Type.String()
	}
	if f.Links > 1 {
		text += fmt.Sprintf("*%d", f.Links)
	}
	return text
}

func TestOverlay(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers []*Layer // the lowest first
		want   string
	}{
		{"one layer", []*Layer{layer(t, dir("a"), file("a/f", "x"), symlink("s", "a/f"))}, "a/ a/f=1 s->a/f"},
		{"parents that are left out", []*Layer{layer(t, file("a/b/c/f", "x"))}, "a/ a/b/ a/b/c/ a/b/c/f=1"},
		{"a file takes the place of a file", []*Layer{layer(t, file("f", "x")), layer(t, file("f", "xyz"))}, "f=3"},
		{"a file takes the place of a directory", []*Layer{layer(t, dir("d"), file("d/f", "x"), file("d-", "x")), layer(t, file("d", "xy"))}, "d=2 d-=1"},
		{"a directory takes the place of a file", []*Layer{layer(t, file("d", "x")), layer(t, dir("d"), file("d/f", "x"))}, "d/ d/f=1"},
		{"a directory that is left out takes the place of a file", []*Layer{layer(t, file("d", "x")), layer(t, file("d/f", "x"))}, "d/ d/f=1"},
		{"a directory takes the place of a symlink", []*Layer{layer(t, file("e/g", "x"), symlink("d", "e")), layer(t, dir("d"), file("d/f", "x"))}, "d/ d/f=1 e/ e/g=1"},
		{"directories are merged", []*Layer{layer(t, dir("d"), file("d/f", "x")), layer(t, dir("d"), file("d/g", "xx"))}, "d/ d/f=1 d/g=2"},
		{"a whiteout", []*Layer{layer(t, file("f", "x"), file("g", "x")), layer(t, file(".wh.f", ""))}, "g=1"},
		{"a whiteout of a directory", []*Layer{layer(t, file("d/e/f", "x"), file("d-e", "x")), layer(t, file(".wh.d", ""))}, "d-e=1"},
		{"a whiteout of what is not there", []*Layer{layer(t, file("f", "x")), layer(t, file("d/.wh.g", ""), file(".wh.h", ""))}, "d/ f=1"},
		{"a sibling of the whiteout's layer survives", []*Layer{layer(t, file("d/f", "x")), layer(t, file(".wh.d", ""), dir("d"), file("d/g", "xx"))}, "d/ d/g=2"},
		{"whatever the order", []*Layer{layer(t, file("d/f", "x")), layer(t, dir("d"), file("d/g", "xx"), file(".wh.d", ""))}, "d/ d/g=2"},
		{"an opaque directory", []*Layer{layer(t, file("d/f", "x"), file("d/e/g", "x")), layer(t, file("d/.wh..wh..opq", ""), file("d/h", "xx"))}, "d/ d/h=2"},
		{"an opaque directory, of its own layer nothing", []*Layer{layer(t, file("d/f", "x")), layer(t, file("d/g", "x"), file("d/.wh..wh..opq", ""))}, "d/ d/g=1"},
		{"an opaque root", []*Layer{layer(t, file("d/f", "x")), layer(t, file(".wh..wh..opq", ""), file("g", "x"))}, "g=1"},
		{"opaque under a directory that was replaced", []*Layer{
			layer(t, dir("d"), dir("d/e"), file("d/e/f", "x")), layer(t, file("d", "x")), layer(t, dir("d"), dir("d/e"), file("d/e/.wh..wh..opq", ""), file("d/e/g", "xx"))},
			"d/ d/e/ d/e/g=2"},
		{"a whiteout in the middle cuts, whatever comes later", []*Layer{
			layer(t, file("d/f", "x")), layer(t, file(".wh.d", "")), layer(t, dir("d"), file("d/g", "xx"))}, "d/ d/g=2"},
		{"AUFS's own files", []*Layer{layer(t, dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", ""), file("f", "x"))}, "f=1"},
		{"hardlinks", []*Layer{layer(t, file("f", "xx"), hardlink("g", "f"), hardlink("d/h", "/g"))}, "d/ d/h=2*3 f=2*3 g=2*3"},
		{"a hardlink before its target", []*Layer{layer(t, hardlink("a", "f"), file("f", "xx"))}, "a=2*2 f=2*2"},
		{"a hardlink to a file below", []*Layer{layer(t, file("f", "xx")), layer(t, hardlink("g", "f"))}, "f=2*2 g=2*2"},
		{"a name of a file that has gone", []*Layer{layer(t, file("f", "xx"), hardlink("g", "f")), layer(t, file(".wh.f", ""))}, "g=2"},
		{"a name of a file that was replaced", []*Layer{layer(t, file("f", "xx"), hardlink("g", "f")), layer(t, file("f", "xyz"))}, "f=3 g=2"},
		{"a hardlink to a symlink", []*Layer{layer(t, symlink("s", "x"), hardlink("l", "s"))}, "l->x*2 s->x*2"},
		{"overlayfs: a whiteout", []*Layer{layer(t, file("f", "x"), file("g", "x")), overlayfs(layer(t, char("f", 0, 0)))}, "g=1"},
		{"overlayfs: another device is none", []*Layer{layer(t, file("f", "x")), overlayfs(layer(t, char("f", 1, 3)))}, "f!char"},
		{"overlayfs: an opaque directory", []*Layer{layer(t, file("d/f", "x")), overlayfs(layer(t, with(dir("d"), "trusted.overlay.opaque", "y"), file("d/g", "xx")))}, "d/ d/g=2"},
		{"overlayfs: of a user", []*Layer{layer(t, file("d/f", "x")), overlayfs(layer(t, with(dir("d"), "user.overlay.opaque", "y")))}, "d/"},
		{"overlayfs: not opaque", []*Layer{layer(t, file("d/f", "x")), overlayfs(layer(t, with(dir("d"), "trusted.overlay.opaque", "n")))}, "d/ d/f=1"},
		{"overlayfs: a whiteout by attribute", []*Layer{layer(t, file("d/f", "x"), file("d/g", "x")), overlayfs(layer(t, with(dir("d"), "trusted.overlay.opaque", "x"), with(file("d/f", ""), "trusted.overlay.whiteout", "")))}, "d/ d/g=1"},
		{"overlayfs: a name of OCI means nothing", []*Layer{layer(t, file("f", "x")), overlayfs(layer(t, file(".wh.f", "")))}, ".wh.f=0 f=1"},
		{"OCI: a device 0/0 is one", []*Layer{layer(t, file("f", "x")), layer(t, char("f", 0, 0))}, "f!char"},
		{"names climb no higher than the root", []*Layer{layer(t, file("../../f", "x"), file("/a/../g", "xx"), file("./h", "xxx"))}, "f=1 g=2 h=3"},
		{"the last one of a name", []*Layer{layer(t, file("f", "x"), file("f", "xx"), symlink("f", "y"), file("./f", "xyz"))}, "f=3"},
		{"a directory that its own layer replaces", []*Layer{layer(t, dir("d"), file("d/f", "x"), file("d", "xx"))}, "d=2"},
		{"and makes again", []*Layer{layer(t, dir("d"), file("d/f", "x"), file("d", "xx"), dir("d"), file("d/g", "x"))}, "d/ d/g=1"},
		{"through a symlink of the layer", []*Layer{layer(t, dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/f", "x"), hardlink("lib/g", "lib/f"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/f=1*2 usr/lib/g=1*2"},
		{"through a symlink that climbs from where another one leads", []*Layer{layer(t, dir("a/b"), symlink("l", "a/b"), symlink("up", "l/.."), file("up/f", "x"))}, "a/ a/b/ a/f=1 l->a/b up->l/.."},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := Overlay(c.layers)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for f := range tree.All() {
				if f.Name != "" {
					got = append(got, tell(f))
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, " "), c.want)
			}
		})
	}
}

func TestAttributesOfDirectories(t *testing.T) {
	below := layer(t, mode(dir("d"), 0o700), file("d/f", "x"))
	for name, c := range map[string]struct {
		above *Layer
		want  uint32
	}{
		"given":    {layer(t, mode(dir("d"), 0o750), file("d/g", "x")), 0o750},
		"left out": {layer(t, file("d/g", "x")), 0o700},
	} {
		tree, err := Overlay([]*Layer{below, c.above})
		if err != nil {
			t.Fatal(err)
		}
		f, ok := tree.Lookup("d")
		if !ok || f.Mode != c.want {
			t.Errorf("%s: mode %04o, want %04o", name, f.Mode, c.want)
		}
	}
}

func TestOverlayfsAttributesAreNotSeen(t *testing.T) {
	d := with(dir("d"), "trusted.overlay.opaque", "y")
	d.Xattrs["user.mine"] = "1"
	for _, l := range []*Layer{overlayfs(layer(t, d)), layer(t, d)} {
		tree, err := Overlay([]*Layer{l})
		if err != nil {
			t.Fatal(err)
		}
		f, _ := tree.Lookup("d")
		if len(f.Xattrs) != 1 || f.Xattrs["user.mine"] != "1" {
			t.Errorf("overlayfs %v: attributes %v", l.Overlayfs, f.Xattrs)
		}
	}
}

func TestWhatMakesNoSense(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]Entry
		want   error
	}{
		"a cycle of hardlinks":             {[][]Entry{{hardlink("a", "b"), hardlink("b", "a")}}, ErrMalformed},
		"a hardlink to itself":             {[][]Entry{{hardlink("a", "a")}}, ErrMalformed},
		"a hardlink to nothing":            {[][]Entry{{hardlink("a", "b")}}, ErrMalformed},
		"a hardlink to a directory":        {[][]Entry{{dir("d"), hardlink("a", "d")}}, ErrMalformed},
		"a hardlink to what is whited out": {[][]Entry{{file("f", "x")}, {file(".wh.f", ""), hardlink("a", "f")}}, ErrMalformed},
		"a whiteout of no name":            {[][]Entry{{file("d/.wh.", "")}}, ErrMalformed},
		"a whiteout of the directory":      {[][]Entry{{file("d/.wh..", "")}}, ErrMalformed},
		"a whiteout of the parent":         {[][]Entry{{file("d/.wh...", "")}}, ErrMalformed},
		"a file in a file":                 {[][]Entry{{file("a", "x"), file("a/b", "x")}}, ErrMalformed},
		"the root is a file":               {[][]Entry{{file("/", "x")}}, ErrMalformed},
		"a zero byte":                      {[][]Entry{{file("a\x00b", "")}}, ErrMalformed},
		"a long name":                      {[][]Entry{{file(strings.Repeat("a/", 3000), "")}}, ErrLimit},
		"a deep name":                      {[][]Entry{{file(strings.Repeat("a/", 1500)+"f", "")}}, ErrLimit},
		"a large file":                     {[][]Entry{{{Name: "f", Type: Regular, Size: MaxFileSize + 1}}}, ErrLimit},
		"symlinks in a circle on the way":  {[][]Entry{{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}}, ErrMalformed},
		"large attributes":                 {[][]Entry{{with(file("f", ""), "user.a", strings.Repeat("x", MaxXattrs))}}, ErrLimit},
		"an extent outside of the file":    {[][]Entry{{{Name: "f", Type: Regular, Size: 1, Extents: []Extent{{Size: 2}}}}}, ErrMalformed},
		"extents that overlap":             {[][]Entry{{{Name: "f", Type: Regular, Size: 9, Extents: []Extent{{Size: 2}, {Offset: 1, Size: 2}}}}}, ErrMalformed},
		"no layers":                        {nil, ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []*Layer
			var err error
			for _, entries := range c.layers {
				var table *TOC
				if table, err = build(entries...); err != nil {
					break
				}
				layers = append(layers, &Layer{TOC: table})
			}
			if err == nil {
				_, err = Overlay(layers)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestALayerAlone refers to files that it does not have.
func TestALayerAlone(t *testing.T) {
	tree, err := Alone(layer(t, hardlink("a", "below"), file("f", "xx"), hardlink("g", "f")))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for f := range tree.All() {
		if f.Name != "" {
			got = append(got, tell(f))
		}
	}
	if want := "a!hardlink f=2*2 g=2*2"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if a, _ := tree.Lookup("a"); a.Link != "below" {
		t.Errorf("linked to %q", a.Link)
	}
	if _, err := Alone(layer(t, hardlink("a", "b"), hardlink("b", "a"))); !errors.Is(err, ErrMalformed) {
		t.Errorf("a cycle: %v", err)
	}
}

func TestResolve(t *testing.T) {
	tree, err := Overlay([]*Layer{layer(t, file("usr/bin/env", "x"), symlink("bin", "usr/bin"), symlink("abs", "/usr/bin/env"), symlink("up", "../../usr"), symlink("loop", "loop"), symlink("usr/bin/rel", "../bin/env"))})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/usr/bin/env": "usr/bin/env", "usr/bin/../bin/env": "usr/bin/env", "bin/env": "usr/bin/env", "/abs": "usr/bin/env", "up/bin/rel": "usr/bin/env",
		"/": "", "": "", "bin": "usr/bin", "..": "", "bin/": "usr/bin",
		"nothing": "-", "usr/bin/env/x": "-", "loop": "-", "usr/nothing/env": "-",
	} {
		f, err := tree.Resolve(path, true)
		switch {
		case want == "-" && err == nil:
			t.Errorf("%q leads to %q", path, f.Name)
		case want != "-" && (err != nil || f.Name != want):
			t.Errorf("%q leads to %q, %v, want %q", path, f.Name, err, want)
		}
	}
	if f, err := tree.Resolve("bin", false); err != nil || f.Type != Symlink {
		t.Errorf("bin itself: %v, %v", f.Type, err)
	}
}

func TestChildren(t *testing.T) {
	tree, err := Overlay([]*Layer{layer(t, file("d/a/x", ""), file("d/a-b", ""), file("d/a0", ""), file("d/b", ""), file("e", ""), file("d-", ""))})
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"": "d d- e", "d": "d/a d/a-b d/a0 d/b", "d/a": "d/a/x", "d/b": "", "nothing": ""} {
		var got []string
		for f := range tree.Children(dir) {
			got = append(got, f.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q has %q, want %q", dir, got, want)
		}
	}
	var below []string
	for f := range tree.Below("d") {
		below = append(below, f.Name)
	}
	if want := []string{"d/a", "d/a-b", "d/a/x", "d/a0", "d/b"}; !slices.Equal(below, want) {
		t.Errorf("below d: %q", below)
	}
}

// TestEntriesComeBack as they were added.
func TestEntriesComeBack(t *testing.T) {
	want := Entry{
		Name: "f", Type: Regular, Mode: 0o4755, UID: 7, GID: 1 << 31, Size: 30, ModTime: time.Unix(-5, 123456789).UTC(),
		Xattrs: map[string]string{"security.capability": "\x00\x01"}, Digest: sumOf("all"),
		Extents: []Extent{{Offset: 0, Size: 10, Start: 5, End: 9, Digest: sumOf("1")}, {Offset: 12, Size: 18, Start: 9, End: 100, Inner: 3}},
	}
	l := table(t, want, char("null", 1, 3))
	got, ok := l.Lookup("f")
	if !ok || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if d, _ := l.Lookup("null"); d.Major != 1 || d.Minor != 3 {
		t.Errorf("device %d,%d", d.Major, d.Minor)
	}
	if root, _ := l.Lookup(""); root.Type != Directory || root.Base() != "." {
		t.Errorf("root: %v %q", root.Type, root.Base())
	}
}

func BenchmarkOverlayOfAMillion(b *testing.B) {
	var entries []Entry
	for i := range 1_000_000 {
		entries = append(entries, Entry{Name: fmt.Sprintf("usr/lib/%03d/%06d", i%1000, i), Type: Regular, Size: 1, Extents: []Extent{{Size: 1, Start: int64(i), End: int64(i) + 1}}, ModTime: day})
	}
	l := layer(b, entries...)
	upper := layer(b, file("usr/lib/000/.wh.000000", ""))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Overlay([]*Layer{l, upper}); err != nil {
			b.Fatal(err)
		}
	}
}
