package toc

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// tellLower is [tell] of a file as overlayfs sees it: -name is a whiteout, and !! stands
// behind a directory that hides what is below it.
func tellLower(f File) string {
	text := tell(f)
	if f.Whiteout() {
		text = "-" + f.Name
	}
	if f.Xattrs["trusted.overlay.opaque"] == "y" {
		text += "!!"
	}
	return text
}

func listLower(t *Tree) string {
	var got []string
	for f := range t.All() {
		if text := tellLower(f); text != "/" {
			got = append(got, text)
		}
	}
	return strings.Join(got, " ")
}

func TestLower(t *testing.T) {
	for _, c := range []struct {
		name  string
		layer *Layer
		want  string
	}{
		{"files", layer(t, dir("a"), file("a/f", "x"), symlink("s", "a/f"), char("null", 1, 3)), "a/ a/f=1 null!char s->a/f"},
		{"a whiteout", layer(t, file("d/.wh.f", ""), file(".wh.g", "")), "d/ -d/f -g"},
		{"a whiteout and a file", layer(t, file(".wh.f", ""), file("f", "x")), "f=1"},
		{"a whiteout and a directory", layer(t, file(".wh.d", ""), dir("d"), file("d/f", "x")), "d/!! d/f=1"},
		{"a whiteout and a directory that is left out", layer(t, file("d/f", "x"), file(".wh.d", "")), "d/!! d/f=1"},
		{"an opaque directory", layer(t, file("d/.wh..wh..opq", ""), file("d/f", "x")), "d/!! d/f=1"},
		{"an opaque root", layer(t, file(".wh..wh..opq", ""), file("f", "x")), "/!! f=1"},
		{"whiteouts where nothing is below", layer(t, file("d/.wh..wh..opq", ""), file("d/.wh.f", ""), file("d/e/.wh.g", "")), "d/!! d/e/"},
		{"AUFS's own files", layer(t, dir(".wh..wh.plnk"), file(".wh..wh.plnk/.wh.f", "x"), file(".wh..wh.aufs", "")), ""},
		{"a whiteout in one", layer(t, dir(".wh.d"), file(".wh.d/.wh.f", ""), file(".wh.d/g", "")), "-d"},
		{"hardlinks", layer(t, file("f", "xx"), hardlink("g", "f"), hardlink("d/h", "/g")), "d/ d/h=2*3 f=2*3 g=2*3"},
		{"a hardlink to what is not known", layer(t, hardlink("g", "f")), "g!hardlink"},
		{"a device 0/0", layer(t, char("f", 0, 0)), "-f"},
		{"a device 0/0 where nothing is below", layer(t, file("d/.wh..wh..opq", ""), char("d/f", 0, 0)), "d/!!"},
		{"overlayfs: a whiteout", overlayfs(layer(t, char("f", 0, 0), char("d/g", 0, 0))), "d/ -d/g -f"},
		{"overlayfs: of an attribute", overlayfs(layer(t, with(dir("d"), "trusted.overlay.opaque", "x"), with(file("d/f", ""), "trusted.overlay.whiteout", ""))), "d/ -d/f"},
		{"overlayfs: an opaque directory", overlayfs(layer(t, with(dir("d"), "trusted.overlay.opaque", "y"), file("d/f", "x"))), "d/!! d/f=1"},
		{"overlayfs: of a user", overlayfs(layer(t, with(dir("d"), "user.overlay.opaque", "y"))), "d/!!"},
		{"overlayfs: a name of OCI means nothing", overlayfs(layer(t, file(".wh.f", ""))), ".wh.f=0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := Lower(c.layer)
			if err != nil {
				t.Fatal(err)
			}
			if got := listLower(tree); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestLowers has layers that refer to what is below them.
func TestLowers(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers []*Layer // the lowest first; nil is one that is not known
		want   string   // of the highest
	}{
		{"a hardlink", []*Layer{layer(t, file("d/f", "xx"), hardlink("e/g", "d/f"), file("h", "")), layer(t, hardlink("i", "e/g"))},
			"d/ d/f=2*3 e/ e/g=2*3 i=2*3"},
		{"a hardlink to what is hidden in part", []*Layer{layer(t, file("d/f", "xx"), hardlink("e/g", "d/f")), layer(t, file(".wh.d", ""), hardlink("i", "e/g"))},
			"-d e/ e/g=2*2 i=2*2"},
		{"a hardlink through two layers", []*Layer{layer(t, file("f", "xx")), layer(t, hardlink("g", "f")), layer(t, hardlink("h", "g"))},
			"f=2*3 g=2*3 h=2*3"},
		{"a file through a symlink", []*Layer{usr(t), layer(t, file("lib/x", "xx"))}, "usr/ usr/lib/ usr/lib/x=2"},
		{"a whiteout through a symlink", []*Layer{usr(t), layer(t, file("lib/.wh.y", ""))}, "usr/ usr/lib/ -usr/lib/y"},
		{"an opaque directory through a symlink", []*Layer{usr(t), layer(t, file("lib/.wh..wh..opq", ""), file("lib/x", "xx"))}, "usr/ usr/lib/!! usr/lib/x=2"},
		{"a hardlink through a symlink", []*Layer{usr(t), layer(t, hardlink("h", "lib/y"))}, "h=1*2 usr/ usr/lib/ usr/lib/y=1*2"},
		{"a symlink that is in no known layer", []*Layer{nil, layer(t, file("lib/x", "xx"))}, "lib/ lib/x=2"},
		{"a hardlink to one that is in no known layer", []*Layer{nil, layer(t, hardlink("g", "f"), file("h", "x"))}, "g!hardlink h=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			trees, err := Lowers(c.layers)
			if err != nil {
				t.Fatal(err)
			}
			for i, tree := range trees {
				if (tree == nil) != (c.layers[i] == nil) {
					t.Errorf("layer %d has the tree %v", i+1, tree)
				}
			}
			if got := listLower(trees[len(trees)-1]); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestLowersAttributesOfDirectories(t *testing.T) {
	below := layer(t, mode(dir("d"), 0o700), mode(dir("e"), 0o700))
	above := layer(t, file("d/g", "x"), file("e/g", "x"), file(".wh.e", ""))
	trees, err := Lowers([]*Layer{below, above})
	if err != nil {
		t.Fatal(err)
	}
	alone, err := Lower(above)
	if err != nil {
		t.Fatal(err)
	}
	mode := func(t *Tree, name string) uint32 { f, _ := t.Lookup(name); return f.Mode }
	if got := fmt.Sprintf("%o %o %o", mode(trees[1], "d"), mode(trees[1], "e"), mode(alone, "d")); got != "700 755 755" {
		t.Errorf("modes %s", got)
	}
}

// TestOverlayfsIsToldNothingElse has attributes that would have a directory or a file be
// another, and a file have the content of another.
func TestOverlayfsIsToldNothingElse(t *testing.T) {
	hostile := func() []Entry {
		d, f := dir("d"), file("f", "x")
		d.Xattrs = map[string]string{"trusted.overlay.redirect": "/etc", "trusted.overlay.opaque": "x", "user.overlay.redirect": "/etc", "user.mine": "1"}
		f.Xattrs = map[string]string{"trusted.overlay.metacopy": "", "trusted.overlay.redirect": "/g", "trusted.overlay.whiteout": "", "user.mine": "1"}
		return []Entry{d, f, file("f0", "")}
	}
	for name, l := range map[string]*Layer{"OCI": layer(t, hostile()...), "overlayfs": overlayfs(layer(t, hostile()...))} {
		tree, err := Lower(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{"d", "f"} {
			if f, ok := tree.Lookup(at); !ok || len(f.Xattrs) != 1 || f.Xattrs["user.mine"] != "1" || f.Whiteout() {
				t.Errorf("%s: %s has %v", name, at, f.Xattrs)
			}
		}
	}
	opaque := layer(t, with(dir("d"), "trusted.overlay.opaque", "y"))
	tree, err := Lower(opaque)
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := tree.Lookup("d"); len(d.Xattrs) > 0 {
		t.Errorf("of names of OCI an attribute means %v", d.Xattrs)
	}
}

// TestLowersAreStable has numbers of files that do not depend on what else is asked.
func TestLowersAreStable(t *testing.T) {
	numbers := func() (all []uint64) {
		trees, err := Lowers([]*Layer{layer(t, file("f", "xx"), file("x", "")), layer(t, hardlink("g", "f"), file(".wh.x", ""), file(".wh.y", ""), file(".wh.z", ""))})
		if err != nil {
			t.Fatal(err)
		}
		for f := range trees[1].All() {
			all = append(all, f.Inode)
		}
		return all
	}
	want := numbers()
	for range 10 {
		if got := numbers(); !slices.Equal(got, want) {
			t.Fatalf("%x, and were %x", got, want)
		}
	}
}
