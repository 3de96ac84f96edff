package recipe

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/families.txt and buildah.recipe anew")

// TestFamilies holds every encoder to what its family has made since it is one. Recipes outlive the
// modules that they were made with.
func TestFamilies(t *testing.T) {
	content := append(sample(250_000), noise(70_000, 1)...)
	content = append(content, make([]byte, 70_000)...)
	content = append(content, bytes.Repeat([]byte("a text that comes again and again\n"), 3000)...)
	var got strings.Builder
	for f := Go; f <= Pgzip117; f++ {
		for level := minLevel; level <= maxLevel; level++ {
			p := content
			switch {
			case level == -1:
				continue
			case f >= Pgzip && level != 5:
				continue // TestProducers has pgzip's blocks, which are of the other families
			case f >= Pgzip:
				p = sample(blockSize + 100_000)
			}
			fmt.Fprintf(&got, "%d %d %x\n", f, level, sha256.Sum256(packed(t, Encoder{f, level}, p, len(p))))
		}
	}
	if *update {
		if err := os.WriteFile("testdata/families.txt", []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := strings.Split(string(golden(t, "families.txt")), "\n")
	for i, line := range strings.Split(got.String(), "\n") {
		if i < len(want) && line == want[i] {
			continue
		}
		var e Encoder
		fmt.Sscan(line, &e.Family, &e.Level)
		t.Errorf("family %d (%v) makes other bytes than recipes mean by it: Go, or a module in go.mod, compresses otherwise now. "+
			"Keep the version that is named there, or give what comes out now a family of its own; do not change testdata/families.txt", e.Family, e)
	}
}

// TestFamiliesDiffer because a recipe of one would be found as that of the other, and TestFamilies
// could not tell them apart.
func TestFamiliesDiffer(t *testing.T) {
	seen := map[string]string{}
	for line := range strings.Lines(string(golden(t, "families.txt"))) {
		var f Family
		var level int
		var sum string
		if _, err := fmt.Sscan(line, &f, &level, &sum); err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[sum]; ok && level > 0 && f != Go {
			t.Errorf("%s, and %s", other, Encoder{f, level})
		}
		seen[sum] = Encoder{f, level}.String()
	}
}
