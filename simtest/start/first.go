package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/images"
)

// filesOf returns the names of the files of an image that the commands read, those that
// were read first at the front, as eStargz's converter finds out before it writes: it
// unpacks the image into memory, runs the commands there, and looks at when each file was
// last read.
func filesOf(ctx context.Context, layers []string, commands []command) (names []string, err error) {
	root, err := os.MkdirTemp("", "granary-start-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(root)
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_STRICTATIME, ""); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Unmount(root, unix.MNT_DETACH)) }()
	for _, l := range layers {
		if err := images.Unpack(l, root); err != nil {
			return nil, err
		}
	}
	begin := time.Now()
	time.Sleep(50 * time.Millisecond) // the kernel's clock of files is as coarse as 10 ms
	for _, c := range commands {
		if err := c.Run(ctx, root); err != nil {
			return nil, err
		}
	}
	return readSince(root, begin)
}

func readSince(root string, begin time.Time) (names []string, err error) {
	when := make(map[string]time.Time)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if at := time.Unix(st.Atim.Unix()); at.After(begin) {
			name := strings.TrimPrefix(path, root+"/")
			names, when[name] = append(names, name), at
		}
		return nil
	})
	slices.SortStableFunc(names, func(a, b string) int { return when[a].Compare(when[b]) })
	return names, err
}
