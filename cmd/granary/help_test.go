package main

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestHelpStandsAlone takes each example of each command for a command line.
func TestHelpStandsAlone(t *testing.T) {
	parser := func() *kong.Kong { // one keeps what it was given
		k, err := kong.New(&cli{}, kong.Name("granary"), kong.Vars{"data_dir": "/nowhere", "platform": "linux/amd64"})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	for _, n := range parser().Model.Leaves(true) {
		name := strings.TrimPrefix(n.FullPath(), "granary ")
		status, out, errs := granary(t, append(strings.Fields(name), "--help")...)
		if status != 0 {
			t.Fatalf("%s --help: %d, %s", name, status, errs)
		}
		told := strings.Join(strings.Fields(out), " ")
		examples := 0
		for line := range strings.Lines(out) {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "granary "+name) {
				continue
			}
			examples++
			if _, err := parser().Parse(strings.Fields(line)[1:]); err != nil {
				t.Errorf("%s: the example %q: %v", name, line, err)
			}
		}
		if examples == 0 || !strings.Contains(told, "exit status is 0") {
			t.Errorf("%s --help has no example, or does not say how it ends:\n%s", name, out)
		}
		for _, f := range n.Flags {
			if f.Help == "" {
				t.Errorf("%s --help does not say what --%s is", name, f.Name)
			}
		}
	}
}
