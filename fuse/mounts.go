package fuse

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mounted reports whether a file system of ours is on top at an absolute path without
// symlinks. It does not ask that file system.
func Mounted(path string) bool {
	m, ok := mountAt(path)
	return ok && m.kind == "fuse."+fsName
}

// TakeAway unmounts all file systems of ours that are mounted in a directory, an absolute
// path without symlinks, and returns how many there were. The caller knows that nobody
// serves them.
func TakeAway(below string) (taken int, err error) {
	var paths []string
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		where, what := strings.Fields(before), strings.Fields(after)
		if len(where) >= 5 && len(what) >= 1 && what[0] == "fuse."+fsName && strings.HasPrefix(unescape(where[4]), below+"/") {
			paths = append(paths, unescape(where[4]))
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("list of mounts: %w", err)
	}
	var errs []error
	for _, path := range slices.Backward(paths) { // the last one is on top
		if err := unmount(path, unix.MNT_DETACH); err != nil {
			errs = append(errs, err)
			continue
		}
		taken++
	}
	return taken, errors.Join(errs...)
}
