package chunkstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// version is the format of the directory that this program writes.
const version = 1

// LockedError says that another process holds a directory.
type LockedError struct {
	Dir    string
	Holder string // what the holder wrote when it took the lock
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("data directory %s: in use by %s", e.Dir, e.Holder)
}

// Lock takes the directory dir, made if it is not there, for this process, and
// leaves holder (at most 1 KiB, one line) for others to read. The lock goes with
// the process, whatever ends it. A directory that another process holds is a
// [*LockedError].
func Lock(dir, holder string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		p, _ := io.ReadAll(io.LimitReader(f, 1024))
		return nil, &LockedError{Dir: dir, Holder: strings.TrimSpace(string(p))}
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(holder+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s: lock: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// checkVersion compares the format of the directory with what this program
// knows, and names the format of a new one.
func checkVersion(dir string) error {
	path := filepath.Join(dir, "VERSION")
	p, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return WriteDurably(path, []byte(strconv.Itoa(version)+"\n"))
	}
	if err != nil {
		return err
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(p)))
	if err != nil {
		return fmt.Errorf("%s: not a format version: %.20q", path, p)
	}
	if v > version {
		return fmt.Errorf("%s: format %d is newer than this program, which knows %d", path, v, version)
	}
	return nil
}

// WriteDurably makes path hold p, readable by its owner alone, or leaves it as it was,
// whatever happens.
func WriteDurably(path string, p []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(p)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}
