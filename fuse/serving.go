package fuse

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// serving are file systems that are served, and mounts of them.
type serving struct {
	mounts []*os.File
	ended  chan struct{} // closed when nobody has any of them mounted, nor uses it
}

// serve begins to serve all file systems, which are mounted nowhere.
func (s *Stack) serve() (v *serving, err error) {
	v = &serving{ended: make(chan struct{})}
	var all sync.WaitGroup
	for _, f := range s.all() {
		mnt, server, ferr := f.apart()
		if err = wrap("fuse", ferr); err != nil {
			break
		}
		v.mounts = append(v.mounts, mnt)
		all.Go(server.Serve)
	}
	go func() { defer close(v.ended); all.Wait() }()
	return v, err
}

// release leaves the file systems to whoever has mounted them.
func (v *serving) release() {
	for _, m := range v.mounts {
		_ = m.Close()
	}
	v.mounts = nil
}

// end waits for a moment for what is not mounted to end. What an assembler that does not
// end keeps ends with this process.
func (v *serving) end() {
	v.release()
	select {
	case <-v.ended:
	case <-time.After(endPatience):
	}
}

// endPatience is how long is waited for an assembler that was killed.
const endPatience = 5 * time.Second

// apart makes the file system known to the kernel, and returns a mount of it.
func (f *FileSystem) apart() (mnt *os.File, server *gofuse.Server, err error) {
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	c := openFS("fuse")
	for _, o := range [][2]string{
		{"source", cut(f.cfg.Source, maxSource)}, {"subtype", fsName}, {"fd", fmt.Sprint(device)}, {"rootmode", fmt.Sprintf("%o", unix.S_IFDIR)},
		{"user_id", "0"}, {"group_id", "0"}, {"max_read", fmt.Sprint(requestSize)},
	} {
		c.set(o[0], o[1])
	}
	for _, flag := range []string{"default_permissions", "allow_other", "ro"} {
		c.flag(flag)
	}
	if mnt, err = c.mount(untrusted | unix.MOUNT_ATTR_RDONLY); err != nil {
		return nil, nil, errors.Join(err, unix.Close(device))
	}
	if server, err = gofuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", device), f.options()); err != nil {
		return nil, nil, errors.Join(err, mnt.Close())
	}
	return mnt, server, nil
}
