package main

import (
	"testing"
	"time"
)

// A mount shows of layers that name things through symlinks of layers below them what
// umoci unpacks them to.
func TestThroughSymlinksInAMount(t *testing.T) {
	l := theLab(t)
	img := l.layered(t, "odd/through",
		tarOf(t, dir("usr"), dir("usr/lib").mode(0o750), file("usr/lib/old", "1"), file("usr/lib/removed", "2"), symlink("lib", "usr/lib"),
			dir("kept"), file("kept/file", "3"), symlink("replaced", "kept"), symlink("removed", "kept"), symlink("twisted", "/../../usr/lib/../share"),
			symlink("one", "two"), symlink("two", "lib"), symlink("dangling", "no/where"), symlink("top", "/"), symlink("circle", "circle"),
			dir("emptied"), file("emptied/file", "4"), symlink("empty", "emptied"), dir("a"), dir("a/b"), symlink("ab", "a/b"), symlink("up", "ab/..")),
		tarOf(t, file("lib/new", "the second layer's"), file("lib/deep/new", "5"), file("lib/.wh.removed", ""), hardlink("lib/linked", "lib/old"), hardlink("hard", "lib/new"),
			dir("replaced"), file("replaced/file", "6"), file(".wh.removed", ""), file("removed/file", "7"), file("twisted/file", "8"),
			file("one/of-a-chain", "9"), file("dangling/file", "10"), file("top/file", "11"), file("empty/.wh..wh..opq", ""), file("empty/new", "12"), file("up/file", "13")),
		tarOf(t, file("two/new", "the third layer's"), file("usr/lib/.wh.of-a-chain", "")),
	)
	want, err := l.unpackImage(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/usr/lib/deep", "/removed", "/usr/share", "/no", "/no/where"} { // which have no entries
		want[name].ModTime = time.Unix(0, 0)
	}
	for _, name := range []string{"/usr", "/usr/lib"} { // of which umoci forgets when they have changed through a symlink
		want[name].ModTime = then
	}
	checkTree(t, serve(t).mount(t, "odd/through:v1"), want)
}
