package configure

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxFile     = 1 << 20 // bytes of a configuration file
	maxLinks    = 40      // symlinks in one path, as the kernel has it
	maxListed   = 4096    // entries of a directory
	newFileMode = 0o644
	newDirMode  = 0o755
)

// host is the machine's file system, wherever it is mounted.
type host struct{ root string }

// file is a configuration file as it is, or will be.
type file struct {
	name     string // as the machine calls it
	path     string // where it really is, from here
	there    bool
	text     []byte
	mode     fs.FileMode
	uid, gid int
}

// resolve returns where a path of the machine is from here. Symlinks are followed as
// the machine would, so that those to absolute paths stay below the root. What comes
// after the first component that does not exist is taken as it is.
func (h host) resolve(name string) (string, error) {
	todo := strings.Split(filepath.Clean("/"+name), "/")
	at := "/"
	for links := 0; len(todo) > 0; {
		next := filepath.Join(at, todo[0]) // of "..", too: at has no symlink
		todo = todo[1:]
		info, err := os.Lstat(filepath.Join(h.root, next))
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, cause(err))
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many symlinks", name)
		}
		to, err := os.Readlink(filepath.Join(h.root, next))
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, cause(err))
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		todo = append(strings.Split(filepath.Clean(to), "/"), todo...)
	}
	return filepath.Join(h.root, at), nil
}

// read reads a file of the machine. One that does not exist is no error.
func (h host) read(name string) (*file, error) {
	path, err := h.resolve(name)
	if err != nil {
		return nil, err
	}
	f := &file{name: name, path: path, mode: newFileMode, uid: -1, gid: -1}
	// A FIFO or a device must not hold this up.
	in, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, cause(err))
	}
	defer in.Close()
	info, err := in.Stat()
	if err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: it is not a regular file", name)
	}
	if err == nil {
		f.text, err = io.ReadAll(io.LimitReader(in, maxFile+1))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, cause(err))
	}
	if len(f.text) > maxFile {
		return nil, fmt.Errorf("%s: it is larger than %d bytes", name, maxFile)
	}
	f.there, f.mode = true, info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.uid, f.gid = int(st.Uid), int(st.Gid)
	}
	return f, nil
}

// glob returns the names that match a pattern, in which one component may have
// asterisks, in order.
func (h host) glob(pattern string) ([]string, error) {
	before, after, found := strings.Cut(pattern, "*")
	if !found {
		f, err := h.stat(pattern)
		if err != nil || f == nil {
			return nil, err
		}
		return []string{pattern}, nil
	}
	slash := strings.LastIndexByte(before, '/')
	dir, prefix := before[:slash+1], before[slash+1:]
	component, rest, _ := strings.Cut(after, "/")
	entries, err := h.list(dir)
	var names []string
	for _, e := range entries {
		if match, merr := filepath.Match(prefix+"*"+component, e); merr != nil || !match {
			continue
		}
		name := filepath.Join(dir, e, rest)
		if info, serr := h.stat(name); serr == nil && info != nil {
			names = append(names, name)
		}
	}
	return names, err
}

// list returns the names in a directory, in order; none if there is no directory.
func (h host) list(name string) ([]string, error) {
	path, err := h.resolve(name)
	if err != nil {
		return nil, err
	}
	d, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, cause(err))
	}
	defer d.Close()
	names, err := d.Readdirnames(maxListed + 1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil && len(names) > maxListed {
		err = fmt.Errorf("it has more than %d entries", maxListed)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, cause(err))
	}
	slices.Sort(names)
	return names, nil
}

// stat says what a name is; nil if it does not exist.
func (h host) stat(name string) (fs.FileInfo, error) {
	path, err := h.resolve(name)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", name, cause(err))
	}
	return info, err
}

// cause is an error without the path that it has from here, which is not the machine's.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
