package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fsName is the kind of file system that lists of mounts show, as "fuse.granary".
const fsName = "granary"

const (
	requestSize = 1 << 20 // bytes of the largest read that the kernel asks for
	readAhead   = 4 << 20 // bytes that it reads before they are asked for
	parallel    = 16      // reads ahead that it may wait for at a time
)

// Serve mounts the file system at dir, which is as [Prepare] wants it, calls mounted,
// and serves until ctx ends or somebody unmounts it. If it is in use when ctx ends, it
// is taken out of the tree of files at once, and served until nobody uses it any more.
//
// As root it is for all users, as modes and owners have it; otherwise it takes
// fusermount3, and is for this user alone. Set-user-ID programs have no more rights than
// others, and devices cannot be opened: who made the image is not who owns the machine.
//
// The process must not touch what is in dir meanwhile, nor wait for one that does.
func (f *FileSystem) Serve(ctx context.Context, dir string, mounted func()) error {
	dir, err := Prepare(dir)
	if err != nil {
		return err
	}
	server, err := f.mount(dir)
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve() }()
	readMoreAhead(dir)
	mounted()
	select {
	case <-served:
		return nil
	case <-ctx.Done():
	}
	err = takeAway(dir, f.cfg.Log)
	if err == nil {
		<-served
	}
	return err
}

// mount mounts the file system at dir. The kernel waits for it to be served from then on.
func (f *FileSystem) mount(dir string) (*gofuse.Server, error) {
	if os.Geteuid() != 0 {
		return gofuse.NewServer(f, dir, f.options("default_permissions", "ro", "nosuid", "nodev"))
	}
	device, err := f.mountAsRoot(dir)
	if err != nil {
		return nil, err
	}
	server, err := gofuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", device), f.options())
	if err != nil {
		err = errors.Join(err, unmount(dir, unix.MNT_DETACH))
	}
	return server, err
}

// mountAsRoot mounts without a helper, and returns the kernel's end: programs that this
// one starts do not get it, for the mount would outlive this one with them, unserved.
func (f *FileSystem) mountAsRoot(dir string) (device int, err error) {
	device, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("/dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,max_read=%d,default_permissions,allow_other", device, unix.S_IFDIR, requestSize)
	if err := unix.Mount(f.cfg.Source, dir, "fuse."+fsName, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return 0, errors.Join(err, unix.Close(device))
	}
	return device, nil
}

func (f *FileSystem) options(forHelper ...string) *gofuse.MountOptions {
	var disabled uint64
	if f.cfg.Files == nil {
		disabled = gofuse.CAP_PASSTHROUGH // which would make the mount one more layer of file systems
	}
	return &gofuse.MountOptions{
		Name: fsName, FsName: f.cfg.Source, Options: forHelper,
		Logger:   slog.NewLogLogger(f.cfg.Log.Handler(), slog.LevelDebug),
		MaxWrite: requestSize, MaxBackground: parallel,
		DisableSplice:            true, // it takes larger pipes than there are for such requests
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		// A directory is listed with attributes only for programs that ask for them.
		ExtraCapabilities:    gofuse.CAP_READDIRPLUS_AUTO | gofuse.CAP_NO_OPENDIR_SUPPORT,
		DisabledCapabilities: disabled,
	}
}

// readMoreAhead makes the kernel read more ahead than its usual 128 KiB, if this process
// may.
func readMoreAhead(dir string) {
	if m, ok := mountAt(dir); ok {
		_ = os.WriteFile("/sys/class/bdi/"+m.device+"/read_ahead_kb", fmt.Append(nil, readAhead>>10), 0)
	}
}

// takeAway takes a file system out of the tree of files. A program that has just ended may
// use it for a moment yet.
func takeAway(dir string, log *slog.Logger) (err error) {
	for range 5 {
		if err = unmount(dir, 0); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	log.Warn("the mount is in use: it is taken away, and served until what is open has been closed", "dir", dir, "error", err)
	return unmount(dir, unix.MNT_DETACH)
}

// unmount unmounts what is mounted at dir; flags are 0 or MNT_DETACH.
func unmount(dir string, flags int) error {
	err := unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW)
	if err != unix.EPERM {
		return wrap("unmount "+dir, err)
	}
	args := []string{"-u", "--", dir}
	if flags != 0 {
		args = []string{"-u", "-z", "--", dir}
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	return wrap(strings.TrimSpace("unmount "+dir+": "+string(out)), err)
}

func wrap(subject string, err error) error {
	if err != nil {
		err = fmt.Errorf("%s: %w", subject, err)
	}
	return err
}
