package toc

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
)

// usr is a layer as distributions have it since they moved all to /usr.
func usr(t testing.TB) *Layer {
	return layer(t, dir("usr"), mode(dir("usr/lib"), 0o750), file("usr/lib/y", "y"), symlink("lib", "usr/lib"))
}

// list describes all files of a tree, each with the name that its layer has for it
// where that is another one.
func list(t *Tree) string {
	var got []string
	for f := range t.All() {
		if f.Name == "" {
			continue
		}
		text := tell(f)
		if f.Source != f.Name {
			text += "@" + f.Source
		}
		got = append(got, text)
	}
	return strings.Join(got, " ")
}

// TestThroughSymlinks has what umoci unpacks such layers to.
func TestThroughSymlinks(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers []*Layer // the lowest first
		want   string
	}{
		{"a file", []*Layer{usr(t), layer(t, file("lib/x", "xx"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/x=2@lib/x usr/lib/y=1"},
		{"a file in place of another", []*Layer{usr(t), layer(t, file("lib/y", "xx"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/y=2@lib/y"},
		{"a file in a directory that is left out", []*Layer{usr(t), layer(t, file("lib/d/x", "xx"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/d/ usr/lib/d/x=2@lib/d/x usr/lib/y=1"},
		{"a directory", []*Layer{usr(t), layer(t, dir("lib/d"), file("lib/d/x", "xx"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/d/@lib/d usr/lib/d/x=2@lib/d/x usr/lib/y=1"},
		{"a directory in place of the symlink", []*Layer{usr(t), layer(t, dir("lib"), file("lib/x", "xx"))}, "lib/ lib/x=2 usr/ usr/lib/ usr/lib/y=1"},
		{"a symlink in place of the symlink", []*Layer{usr(t), layer(t, symlink("lib", "opt"), file("lib/x", "xx"))}, "lib->opt opt/ opt/x=2 usr/ usr/lib/ usr/lib/y=1"},
		{"a whiteout of the symlink", []*Layer{usr(t), layer(t, file(".wh.lib", ""), file("lib/x", "xx"))}, "lib/ lib/x=2 usr/ usr/lib/ usr/lib/y=1"},
		{"an opaque root", []*Layer{usr(t), layer(t, file(".wh..wh..opq", ""), file("lib/x", "xx"))}, "lib/ lib/x=2"},
		{"a whiteout", []*Layer{usr(t), layer(t, file("lib/.wh.y", ""))}, "lib->usr/lib usr/ usr/lib/"},
		{"a whiteout, and a file of that name", []*Layer{usr(t), layer(t, file("lib/.wh.y", ""), file("usr/lib/y", "xx"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/y=2"},
		{"an opaque directory", []*Layer{usr(t), layer(t, file("lib/.wh..wh..opq", ""))}, "lib->usr/lib usr/ usr/lib/"},
		{"an opaque directory, and a file", []*Layer{usr(t), layer(t, file("lib/x", "xx"), file("lib/.wh..wh..opq", ""))}, "lib->usr/lib usr/ usr/lib/ usr/lib/x=2@lib/x"},
		{"what the symlink leads to is removed", []*Layer{usr(t), layer(t, file("usr/.wh.lib", ""), file("lib/x", "xx"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/x=2@lib/x"},
		{"a hardlink to a file below", []*Layer{usr(t), layer(t, hardlink("h", "lib/y"))}, "h=1*2@usr/lib/y lib->usr/lib usr/ usr/lib/ usr/lib/y=1*2"},
		{"a hardlink beside a file below", []*Layer{usr(t), layer(t, hardlink("lib/h", "lib/y"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/h=1*2@usr/lib/y usr/lib/y=1*2"},
		{"a hardlink to a file of the layer", []*Layer{usr(t), layer(t, file("lib/x", "xx"), hardlink("h", "lib/x"), hardlink("g", "usr/lib/x"))}, "g=2*3@lib/x h=2*3@lib/x lib->usr/lib usr/ usr/lib/ usr/lib/x=2*3@lib/x usr/lib/y=1"},
		{"a symlink", []*Layer{usr(t), layer(t, symlink("lib/s", "y"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/s->y@lib/s usr/lib/y=1"},
		{"a chain", []*Layer{layer(t, symlink("a", "b"), symlink("b", "c"), file("c/y", "y")), layer(t, file("a/x", "xx"))}, "a->b b->c c/ c/x=2@a/x c/y=1"},
		{"a chain of several layers", []*Layer{usr(t), layer(t, symlink("l", "lib")), layer(t, file("l/x", "xx"))}, "l->lib lib->usr/lib usr/ usr/lib/ usr/lib/x=2@l/x usr/lib/y=1"},
		{"a chain that ends in the layer", []*Layer{usr(t), layer(t, symlink("usr/lib", "share"), file("lib/x", "xx"))}, "lib->usr/lib usr/ usr/lib->share usr/share/ usr/share/x=2@lib/x"},
		{"a chain that begins in the layer", []*Layer{usr(t), layer(t, symlink("l", "lib"), file("l/x", "xx"))}, "l->lib lib->usr/lib usr/ usr/lib/ usr/lib/x=2@lib/x usr/lib/y=1"},
		{"one that climbs out of the root", []*Layer{layer(t, file("usr/lib/y", "y"), symlink("lib", "/../../usr/lib")), layer(t, file("lib/x", "xx"))}, "lib->/../../usr/lib usr/ usr/lib/ usr/lib/x=2@lib/x usr/lib/y=1"},
		{"one that climbs from where another one leads", []*Layer{layer(t, dir("a/b"), symlink("l", "a/b"), symlink("up", "l/..")), layer(t, file("up/x", "xx"))}, "a/ a/b/ a/x=2@up/x l->a/b up->l/.."},
		{"one that leads to the root", []*Layer{layer(t, symlink("r", "/")), layer(t, file("r/x", "xx"), file("r/d/z", "x"))}, "d/ d/z=1@r/d/z r->/ x=2@r/x"},
		{"one that leads to nothing", []*Layer{layer(t, symlink("lib", "no/where")), layer(t, file("lib/x", "xx"))}, "lib->no/where no/ no/where/ no/where/x=2@lib/x"},
		{"a hardlink to a symlink", []*Layer{layer(t, dir("d"), symlink("s", "d"), hardlink("l", "s")), layer(t, file("l/x", "xx"))}, "d/ d/x=2@l/x l->d*2@s s->d*2"},
		{"a loop that nothing is in", []*Layer{layer(t, symlink("a", "b"), symlink("b", "a")), layer(t, file("x", "xx"))}, "a->b b->a x=2"},
		{"a symlink that is named through another one", []*Layer{usr(t), layer(t, symlink("lib/s", "/opt"), file("usr/lib/s/x", "xx"), file("lib/s/z", "x"))}, "lib->usr/lib opt/ opt/x=2@usr/lib/s/x opt/z=1 usr/ usr/lib/ usr/lib/s->/opt@lib/s usr/lib/y=1"},
		{"a directory in place of a symlink that is named through another one", []*Layer{layer(t, file("usr/lib/y", "y"), symlink("lib", "usr/lib"), symlink("usr/lib/s", "/opt")), layer(t, dir("lib/s"), file("lib/s/x", "xx"), file("usr/lib/s/z", "x"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/s/@lib/s usr/lib/s/x=2@lib/s/x usr/lib/s/z=1 usr/lib/y=1"},
		{"a directory of both names", []*Layer{usr(t), layer(t, mode(dir("lib/d"), 0o700), file("lib/d/x", "xx"), dir("usr/lib/d"), file("usr/lib/d/z", "x"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/d/ usr/lib/d/x=2@lib/d/x usr/lib/d/z=1 usr/lib/y=1"},
		{"a file of both names", []*Layer{usr(t), layer(t, file("lib/f", "xx"), file("usr/lib/f", "x"))}, "lib->usr/lib usr/ usr/lib/ usr/lib/f=1 usr/lib/y=1"},
		{"overlayfs: a whiteout of the symlink", []*Layer{usr(t), overlayfs(layer(t, char("lib", 0, 0)))}, "usr/ usr/lib/ usr/lib/y=1"},
		{"a layer above, of the file", []*Layer{usr(t), layer(t, file("lib/x", "xx")), layer(t, file("usr/lib/.wh.x", ""))}, "lib->usr/lib usr/ usr/lib/ usr/lib/y=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := Overlay(c.layers)
			if err != nil {
				t.Fatal(err)
			}
			if got := list(tree); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			for f := range tree.All() {
				if e, ok := f.Layer.Lookup(f.Source); f.Type != Directory && (!ok || e.Type != f.Type || e.Size != f.Size) {
					t.Errorf("%s: its layer has no %s like it", f.Name, f.Source)
				}
			}
		})
	}
}

// TestThroughSymlinksThatMakeNoSense is refused, as by programs that unpack it.
func TestThroughSymlinksThatMakeNoSense(t *testing.T) {
	for name, c := range map[string]struct {
		below, above *Layer
		want         error
	}{
		"a circle":          {layer(t, symlink("a", "b"), symlink("b", "a")), layer(t, file("a/x", "")), ErrMalformed},
		"itself":            {layer(t, symlink("a", "a")), layer(t, hardlink("h", "a/x")), ErrMalformed},
		"longer and longer": {layer(t, symlink("a", "a/"+strings.Repeat("b/", 2000))), layer(t, file("a/x", "")), ErrMalformed},
		"a long name":       {layer(t, symlink("a", strings.Repeat("b", 4000))), layer(t, file("a/"+strings.Repeat("c", 200), "")), ErrLimit},
		"in a file":         {usr(t), layer(t, file("usr", "x"), file("lib/x", "")), ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Overlay([]*Layer{c.below, c.above}); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestNamesThatSymlinksMakeAreBounded would take a gigabyte of them.
func TestNamesThatSymlinksMakeAreBounded(t *testing.T) {
	f := follower{target: func(name string) (string, bool) { return "b", name == "a" }, text: MaxText - 7}
	if name, err := f.move("a/x"); name != "b/x" || err != nil {
		t.Fatalf("%q, %v", name, err)
	}
	if name, err := f.move("a/xyz"); !errors.Is(err, ErrLimit) {
		t.Errorf("%q, %v", name, err)
	}
}

// TestTheDirectoryThatASymlinkLeadsTo keeps what the layers below say of it.
func TestTheDirectoryThatASymlinkLeadsTo(t *testing.T) {
	tree, err := Overlay([]*Layer{usr(t), layer(t, file("lib/x", "x"))})
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := tree.Lookup("usr/lib"); d.Mode != 0o750 {
		t.Errorf("mode %04o", d.Mode)
	}
}

// TestImpliedDirectoriesComeBack from JSON as what they are: others take the place of a
// symlink.
func TestImpliedDirectoriesComeBack(t *testing.T) {
	epoch := dir("lib")
	epoch.ModTime = day.AddDate(-2023, 0, 0) // as close to none as can be
	for name, c := range map[string]struct {
		above *Layer
		want  string
	}{
		"implied": {layer(t, file("lib/x", "")), "lib->usr/lib usr/ usr/lib/ usr/lib/x=0@lib/x usr/lib/y=1"},
		"given":   {layer(t, epoch, file("lib/x", "")), "lib/ lib/x=0 usr/ usr/lib/ usr/lib/y=1"},
	} {
		var text bytes.Buffer
		if err := EncodeJSON(&text, c.above.TOC); err != nil {
			t.Fatal(err)
		}
		decoded, err := DecodeJSON(&text, math.MaxInt64)
		if err != nil {
			t.Fatal(err)
		}
		tree, err := Overlay([]*Layer{usr(t), {TOC: decoded}})
		if err != nil {
			t.Fatal(err)
		}
		if got := list(tree); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, c.want)
		}
	}
}
