package fuse

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// untrusted are attributes of a mount of what somebody else has made (mount_setattr(2)).
const untrusted = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// fsContext is a file system that is being made known to the kernel (fsopen(2)). It
// stops at its first error. It is mounted nowhere, so that nothing is left of it when the
// process dies.
type fsContext struct {
	kind string
	fd   int
	err  error
}

func openFS(kind string) *fsContext {
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	return &fsContext{kind, fd, wrap("fsopen "+kind, err)}
}

func (c *fsContext) do(subject string, f func() error) {
	if c.err != nil {
		return
	}
	if err := f(); err != nil {
		c.err = fmt.Errorf("%s: %s: %w%s", c.kind, subject, err, c.said())
	}
}

// set gives an option. A value is at most 255 bytes long.
func (c *fsContext) set(key, value string) {
	c.do(key+"="+value, func() error { return unix.FsconfigSetString(c.fd, key, value) })
}

func (c *fsContext) flag(key string) {
	c.do(key, func() error { return unix.FsconfigSetFlag(c.fd, key) })
}

// mount makes the file system, and returns a mount of it. The context is not to be used
// again.
func (c *fsContext) mount(attrs int) (mnt *os.File, err error) {
	fd := -1
	c.do("mount", func() error { return unix.FsconfigCreate(c.fd) })
	c.do("mount", func() (err error) {
		fd, err = unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attrs)
		return err
	})
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
	}
	if c.err != nil {
		return nil, c.err
	}
	return os.NewFile(uintptr(fd), c.kind), nil
}

// said returns the kernel's reasons for an error, if it gives any.
func (c *fsContext) said() string {
	var said strings.Builder
	line := make([]byte, 1024)
	for range 8 { // it keeps no more
		n, err := unix.Read(c.fd, line)
		if err != nil || n <= 2 {
			break
		}
		fmt.Fprintf(&said, ": %s", strings.TrimSpace(string(line[2:n]))) // "e " is an error
	}
	return said.String()
}

// attach mounts at a path what is mounted nowhere.
func attach(mnt *os.File, path string) error {
	err := unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	return wrap("mount at "+path, err)
}

// detached returns a mount of its own of what is mounted at a path.
func detached(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount at %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mountImage returns a mount of an image that is the file at a path. EROFS reads a file
// itself, since Linux 6.12; what does not takes a loop device, to which link is made a
// symlink.
func mountImage(kind, path, link string) (*os.File, error) {
	if kind == "erofs" {
		c := openFS(kind)
		c.set("source", path)
		mnt, err := c.mount(untrusted | unix.MOUNT_ATTR_RDONLY)
		if !errors.Is(err, unix.ENOTBLK) {
			return mnt, err
		}
	}
	device, err := attachLoop(path)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	if err := os.Symlink(device.Name(), link); err != nil {
		return nil, err
	}
	c := openFS(kind)
	c.set("source", link) // and not the device, which does not tell whose it is
	c.flag("ro")
	return c.mount(untrusted | unix.MOUNT_ATTR_RDONLY)
}
