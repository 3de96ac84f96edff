package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/fuse/mounter"
	"github.com/granary-oci/granary/fuse/snapshotter"
)

// mounterCmd keeps the mounts of a node's snapshotter. The node starts it.
type mounterCmd struct {
	DataDir string `name:"data-dir" default:"${data_dir}" placeholder:"DIR" help:"The node's."`
}

func (c *mounterCmd) Run(e *env, all *cli) error {
	dir, root := node.SnapshotDirs(c.DataDir)
	unlock, err := chunkstore.Lock(dir, fmt.Sprintf("pid %d", os.Getpid()))
	if err != nil {
		return err
	}
	defer unlock()
	out, err := openLog(filepath.Join(dir, node.MounterLog))
	if err != nil {
		return err
	}
	defer out.Close()
	log := newLogger(out, all.LogLevel, all.LogFormat)
	err = keepMounts(e.ctx, dir, snapshotter.Below(root), log, unlock)
	if err != nil {
		log.Error("the mounter failed", "error", err)
	}
	return err
}

// keepMounts keeps mounts until it is told to end, or nobody needs it.
func keepMounts(ctx context.Context, dir, below string, log *slog.Logger, unlock func()) error {
	// Its end would be that of all containers on the machine: others go first when memory
	// runs out. That takes root, and is no condition.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil {
		log.Warn("the kernel may choose this process when memory runs out", "error", err)
	}
	layers := &layerMounts{log: log}
	s, err := mounter.NewServer(mounter.ServerConfig{
		Dir: dir, Below: below, Open: layers.open, Attached: layers.attached, Log: log,
	})
	if err != nil {
		return err
	}
	log.Info("keeping mounts", "below", below, "pid", os.Getpid(), "version", node.Version)
	err = s.Run(ctx, unlock)
	log.Info("stopped")
	return err
}

// maxLog is how large a mounter's log becomes, in bytes, before it is begun anew. The last
// one is kept.
const maxLog = 8 << 20

// boundedLog is a file that is begun anew when it is large. It is for one writer at a time.
type boundedLog struct {
	*os.File
	path string
	size int64
}

func openLog(path string) (*boundedLog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &boundedLog{f, path, info.Size()}, nil
}

func (l *boundedLog) Write(p []byte) (int, error) {
	if l.size+int64(len(p)) > maxLog {
		if err := l.turn(); err != nil {
			return 0, err
		}
	}
	n, err := l.File.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *boundedLog) turn() error {
	if err := os.Rename(l.path, l.path+".old"); err != nil {
		return err
	}
	next, err := openLog(l.path)
	if err != nil {
		return err
	}
	err = l.Close()
	*l = *next
	return err
}
