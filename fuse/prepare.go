package fuse

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxStale bounds the dead mounts at one directory that are taken away.
const maxStale = 16

// Prepare returns the absolute path of a directory to mount at, without symlinks. It
// must be empty. What a process that was killed has left mounted there is taken away.
func Prepare(dir string) (string, error) {
	path, err := resolve(dir)
	if err != nil {
		return "", fmt.Errorf("mount at %s: %w", dir, err)
	}
	for range maxStale {
		m, ok := mountAt(path)
		if !ok || !m.ours() {
			break
		}
		if name, served := m.served(path); served {
			return "", fmt.Errorf("mount at %s: %s is mounted there", dir, name)
		}
		if err := unmount(path, unix.MNT_DETACH); err != nil {
			return "", fmt.Errorf("mount at %s: a dead mount: %w", dir, err)
		}
	}
	if err := checkEmpty(path); err != nil {
		return "", fmt.Errorf("mount at %s: %w", dir, err)
	}
	return path, nil
}

// resolve returns an absolute path without symlinks; the path's last element may be
// where a dead mount is, which cannot be looked at.
func resolve(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, unix.ENOTCONN) {
		return real, err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(parent, filepath.Base(path)), err
}

func checkEmpty(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if info, err := d.Stat(); err != nil || !info.IsDir() {
		return errors.Join(err, &fs.PathError{Op: "mount", Path: path, Err: unix.ENOTDIR})
	}
	switch _, err := d.Readdirnames(1); err {
	case io.EOF:
		return nil
	case nil:
		return &fs.PathError{Op: "mount", Path: path, Err: unix.ENOTEMPTY}
	default:
		return err
	}
}

// mount is a mounted file system, as the kernel lists it.
type mount struct {
	device string // MAJOR:MINOR
	kind   string
	source string
}

// ours reports whether it is of this package.
func (m mount) ours() bool {
	_, _, stacked := lifeOf(m.source)
	return stacked || m.kind == "fuse."+fsName
}

// served returns what is mounted at a path, and whether the process that serves it lives.
func (m mount) served(path string) (name string, ok bool) {
	if life, name, stacked := lifeOf(m.source); stacked {
		return name, lasts(life)
	}
	// The kernel may answer other questions from memory for an hour yet.
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return m.source, !errors.Is(err, unix.ENOTCONN)
}

// mountAt returns the file system that is mounted at a path, without asking it.
func mountAt(path string) (m mount, ok bool) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return m, false
	}
	defer f.Close()
	return findMount(f, path)
}

// findMount finds the last mount at a path in a list of the kernel's (proc(5),
// /proc/PID/mountinfo): it is on top of others.
func findMount(list io.Reader, path string) (m mount, ok bool) {
	lines := bufio.NewScanner(list)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		where, what := strings.Fields(before), strings.Fields(after)
		if len(where) >= 5 && len(what) >= 2 && unescape(where[4]) == path {
			m, ok = mount{device: where[2], kind: what[0], source: unescape(what[1])}, true
		}
	}
	return m, ok
}

// unescape returns what a list of mounts says with white space as \ and three octal
// digits.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
