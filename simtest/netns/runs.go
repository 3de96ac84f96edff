package netns

import (
	"os"
	"path/filepath"
	"strings"
)

// SweepRuns removes what runs that were killed have left in a directory: each has had one there that is called run- and its process.
func SweepRuns(work string) {
	names, _ := filepath.Glob(filepath.Join(work, "run-*"))
	for _, name := range names {
		_, pid, _ := strings.Cut(filepath.Base(name), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			UnmountBelow(name)
			_ = os.RemoveAll(name)
		}
	}
}
