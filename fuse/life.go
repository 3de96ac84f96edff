package fuse

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lives has a file for each process that serves a [Stack], which holds a lock on it for as
// long as it does: what is mounted then may be of any kind, and answers for a while after
// that process has died.
const lives = "/run/granary/mounts"

// life is a process that serves. Sources of what it mounts begin with its path.
type life struct {
	path string
	file *os.File
}

func newLife() (*life, error) {
	if err := os.MkdirAll(lives, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(lives, rand.Text())
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	return &life{path, file}, nil
}

// end is called when nothing is served any more.
func (l *life) end() {
	_ = os.Remove(l.path)
	_ = l.file.Close()
}

// lifeOf returns the path of the life that a mount's source tells of, and what is mounted.
func lifeOf(source string) (path, name string, ok bool) {
	rest, ok := strings.CutPrefix(source, lives+"/")
	if !ok {
		return "", "", false
	}
	token, name, ok := strings.Cut(rest, "/")
	name = strings.TrimPrefix(strings.TrimPrefix(name, imagesDir+"/"), loopsDir+"/")
	return filepath.Join(lives, token), name, ok && token != "" && !strings.HasPrefix(token, ".")
}

// lasts reports whether the process of a life is there. Who cannot tell takes it that it
// is.
func lasts(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer file.Close()
	return unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}
