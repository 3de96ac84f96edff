package fuse

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// assembly is what [Assemble] is to do. From descriptor firstMount on it has a mount of
// the images as files, if there are any, and of each tree.
type assembly struct {
	Work   string // a path below lives
	Source string // what lists of mounts show of it, below Work
	Images bool
	Layers []part // the lowest first
	Upper  string // see [StackConfig]
}

// part is a layer of an assembly.
type part struct {
	Format toc.Format // of an image; "" is a tree
	Image  string     // its name
}

// Descriptors that [Assemble] is started with: a socket for the result, and mounts.
const (
	resultSocket = 3
	firstMount   = 4
)

// maxAssembly bounds the bytes of an assembly.
const maxAssembly = 1 << 20

// Assemble does for [Stack.Serve] what takes reading what that serves: it mounts a
// stack's images and lays its layers over each other. It is for the main function of a
// process of its own, which ends after: see [StackConfig]. r says what to do.
//
// All that it mounts is in a mount namespace of its own, which ends with the process.
func Assemble(r io.Reader) error {
	var a assembly
	if err := json.NewDecoder(io.LimitReader(r, maxAssembly)).Decode(&a); err != nil {
		return fmt.Errorf("what to assemble: %w", err)
	}
	runtime.LockOSThread() // to the end: the thread alone is in the namespace
	if err := a.enter(); err != nil {
		return err
	}
	lowers, err := a.mountLayers()
	if err != nil {
		return err
	}
	var top *os.File
	if len(lowers) == 1 && a.Upper == "" {
		top, err = detached(lowers[0])
	} else {
		top, err = a.overlay(lowers)
	}
	if err != nil {
		return err
	}
	err = unix.Sendmsg(resultSocket, []byte{0}, unix.UnixRights(int(top.Fd())), nil, 0)
	return wrap("send the mount", err)
}

// enter makes a namespace with an empty directory to mount in.
func (a *assembly) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("a mount namespace: %w", err)
	}
	if err := unix.Mount("tmpfs", lives, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"); err != nil {
		return fmt.Errorf("mount at %s: %w", lives, err)
	}
	return errors.Join(os.Mkdir(a.Work, 0o700), os.Mkdir(a.at(imagesDir), 0o700), os.Mkdir(a.at(loopsDir), 0o700))
}

// Names in the directory that is worked in; layers are numbers.
const (
	imagesDir = "images"
	loopsDir  = "loops"
)

func (a *assembly) at(names ...string) string {
	return filepath.Join(append([]string{a.Work}, names...)...)
}

// mountLayers returns the paths of the layers that are seen, the lowest first.
func (a *assembly) mountLayers() (lowers []string, err error) {
	next := uintptr(firstMount)
	attachNext := func(path string) error {
		mnt := os.NewFile(next, path)
		next++
		defer mnt.Close()
		if err := attach(mnt, path); err != nil {
			return err
		}
		readMoreAheadOf(path)
		return nil
	}
	if a.Images {
		if err := attachNext(a.at(imagesDir)); err != nil {
			return nil, err
		}
	}
	for i, p := range a.Layers {
		path := a.at(strconv.Itoa(i))
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, err
		}
		if p.Format == "" {
			err = attachNext(path)
		} else {
			err = a.mountImage(p, path)
		}
		if err != nil {
			return nil, err
		}
		if opaque(path) {
			lowers = nil // overlayfs does not ask that of a layer's root
		}
		lowers = append(lowers, path)
	}
	return lowers, nil
}

func (a *assembly) mountImage(p part, path string) error {
	mnt, err := mountImage(string(p.Format), a.at(imagesDir, p.Image), a.at(loopsDir, p.Image))
	if err != nil {
		return fmt.Errorf("layer %s: %w", p.Image, err)
	}
	defer mnt.Close()
	return attach(mnt, path)
}

func opaque(path string) bool {
	value := make([]byte, 8)
	n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", value)
	return err == nil && string(value[:n]) == "y"
}

// overlay lays layers over each other, and what is written over them, if it may be. What
// a layer says of files being elsewhere is not believed (kernel, overlayfs.rst,
// "redirect_dir", "Metadata only copy up").
func (a *assembly) overlay(lowers []string) (*os.File, error) {
	attrs := untrusted
	c := openFS("overlay")
	c.set("source", a.at(cut(a.Source, maxSource)))
	if a.Upper == "" {
		attrs |= unix.MOUNT_ATTR_RDONLY
	} else if err := a.prepareUpper(lowers[len(lowers)-1]); err != nil {
		return nil, err
	} else {
		// Relative to the working directory: an option of the kernel's is short.
		c.set("upperdir", "upper")
		c.set("workdir", "work")
	}
	for i := range lowers {
		c.set("lowerdir+", lowers[len(lowers)-1-i]) // topmost first
	}
	c.set("redirect_dir", "nofollow")
	c.set("metacopy", "off")
	c.set("index", "off")
	c.set("nfs_export", "off")
	c.set("xino", "on") // so that all files are on one device
	return c.mount(attrs)
}

// maxSource is how much of an image's name fits into what a mount shows, in bytes.
const maxSource = 180

func cut(s string, n int) string { return s[:min(len(s), n)] }

// prepareUpper makes what overlayfs writes to, the first time as the lower root is, and
// makes its directory the working one.
func (a *assembly) prepareUpper(lower string) error {
	upper := filepath.Join(a.Upper, "upper")
	switch err := os.Mkdir(upper, 0o755); {
	case err == nil:
		if err := copyRoot(lower, upper); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	if err := os.Mkdir(filepath.Join(a.Upper, "work"), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return wrap(a.Upper, unix.Chdir(a.Upper))
}

// copyRoot gives a directory the owner, mode and time of another.
func copyRoot(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return fmt.Errorf("the image's root: %w", err)
	}
	return wrap(to, errors.Join(
		unix.Lchown(to, int(st.Uid), int(st.Gid)),
		unix.Chmod(to, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW),
	))
}

// readMoreAheadOf makes the kernel read more ahead of what is mounted at a path than its
// usual 128 KiB, if this process may.
func readMoreAheadOf(path string) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil {
		device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
		_ = os.WriteFile("/sys/class/bdi/"+device+"/read_ahead_kb", fmt.Append(nil, readAhead>>10), 0)
	}
}
