package configure

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPatchTakesTheDiff has patch(1) make the new text from the old one.
func TestPatchTakesTheDiff(t *testing.T) {
	patch, err := exec.LookPath("patch")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("MISSING: patch; CI has it")
		}
		t.Skip("MISSING: patch")
	}
	long := strings.Repeat("# a line\n", 20)
	for _, c := range [][2]string{
		{"", "a\nb\n"}, {"a\n", ""}, {"a", "a\nb"}, {"a\nb", "a\nb\n"},
		{long + "x\n" + long + "y\n" + long, "z\n" + long + long + "y\nw\n" + long},
	} {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte(c[0]), 0o600); err != nil {
			t.Fatal(err)
		}
		p := Plan{Changes: []Change{{File: file, old: []byte(c[0]), new: []byte(c[1]), was: true, is: true}}}
		cmd := exec.Command(patch, "-s", file)
		cmd.Stdin = strings.NewReader(p.Diff())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, p.Diff())
			continue
		}
		if got, err := os.ReadFile(file); string(got) != c[1] {
			t.Errorf("%q: got %q, %v; want %q\n%s", c[0], got, err, c[1], p.Diff())
		}
	}
}
