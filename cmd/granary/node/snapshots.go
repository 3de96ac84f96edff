package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/granary-oci/granary/fuse/mounter"
	"github.com/granary-oci/granary/fuse/snapshotter"
)

// SnapshotDirs returns the directory of the process that keeps mounts for the node of a
// data directory, and the one of the snapshots that they are in. Both have no symlinks, as
// far as they are there.
func SnapshotDirs(dataDir string) (keeper, snapshots string) {
	if abs, err := filepath.Abs(dataDir); err == nil {
		dataDir = abs
	}
	if real, err := filepath.EvalSymlinks(dataDir); err == nil {
		dataDir = real
	}
	return filepath.Join(dataDir, "mounter"), filepath.Join(dataDir, "snapshotter")
}

// MounterLog is the name of the log of the process that keeps mounts, in its directory.
const MounterLog = "log"

// snapshots are what containerd's containers have as their roots.
type snapshots struct {
	listener net.Listener
	server   *snapshotter.Server
	mounter  *mounter.Client
}

// openSnapshots makes the node a snapshotter, if it is to be one.
func (n *Node) openSnapshots() error {
	if n.cfg.SnapshotterListen == "" {
		return nil
	}
	path, ok := strings.CutPrefix(n.cfg.SnapshotterListen, "unix://")
	var err error
	switch {
	case !ok || !filepath.IsAbs(path):
		err = fmt.Errorf("%q is not unix:// and an absolute path", n.cfg.SnapshotterListen)
	case os.Geteuid() != 0:
		err = errors.New("it takes root, to mount what all users see")
	case n.store.Disk == nil:
		n.log.Error("there is no snapshotter: the data directory cannot be used")
	default:
		n.snapshots, err = n.newSnapshots(path)
	}
	if err != nil {
		return &SettingError{"snapshotter-listen", err}
	}
	return nil
}

func (n *Node) newSnapshots(path string) (*snapshots, error) {
	keeper, root := SnapshotDirs(n.cfg.DataDir)
	credentials := n.cfg.DockerConfig
	if credentials != "" {
		var err error
		if credentials, err = filepath.Abs(credentials); err != nil {
			return nil, err
		}
	}
	s := &snapshots{mounter: mounter.NewClient(mounter.ClientConfig{
		Dir: keeper, Log: n.log, Start: func() (<-chan error, error) { return startMounter(keeper, n.cfg.Mounter) },
		Node: mounter.Node{URL: n.URLs()[0], DockerConfig: credentials, DefaultUpstream: n.cfg.DefaultUpstream},
	})}
	var err error
	s.server, err = snapshotter.New(context.Background(), snapshotter.Config{
		Root: root, Mounter: s.mounter, DrainTimeout: n.cfg.DrainTimeout, Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	if s.listener, err = mounter.Listen(path); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, ignoreClosed(s.listener))
	return s, nil
}

// run answers containerd until ctx ends. Mounts stay.
func (s *snapshots) run(ctx context.Context) error {
	asking, done := context.WithCancel(context.WithoutCancel(ctx))
	left := make(chan struct{})
	go func() { defer close(left); s.mounter.Run(asking) }()
	err := s.server.Serve(ctx, s.listener) // which asks the mounter until it ends
	done()
	<-left
	return err
}

// startMounter starts this program with arguments that make it keep mounts, in a process
// that outlives this one. The channel says when, and why, that has ended.
func startMounter(keeper string, args []string) (<-chan error, error) {
	if len(args) == 0 {
		return nil, errors.New("this program cannot keep mounts")
	}
	if err := os.MkdirAll(keeper, 0o700); err != nil {
		return nil, err
	}
	// Not a pipe, whose end would be the end of who writes to it.
	log, err := os.OpenFile(filepath.Join(keeper, MounterLog), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", append(args, "--data-dir", filepath.Dir(keeper))...)
	cmd.Args[0], cmd.Dir = "granary", "/"
	// Settings of this process are not for that one.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "GRANARY_") })
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	ended := make(chan error, 1)
	go func() {
		defer log.Close()
		ended <- fmt.Errorf("%v: %s", cmd.Wait(), lastLine(log))
	}()
	return ended, nil
}

// lastLine returns the last line of a file, if it is not long.
func lastLine(f *os.File) string {
	const most = 1 << 10
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	p, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-most), most))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(p)), "\n")
	return lines[len(lines)-1]
}
