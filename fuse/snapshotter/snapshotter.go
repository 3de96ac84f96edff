package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/stargz-snapshotter/snapshot"
	"google.golang.org/grpc"
)

// Config says where snapshots are, and who mounts layers.
type Config struct {
	// Root is the directory of the snapshots, and of what containers write. It is on a
	// file system that overlayfs can write to.
	Root string
	// Mounter mounts layers below Root.
	Mounter Mounter
	// DrainTimeout is how long containerd's requests may take when the server is to end.
	DrainTimeout time.Duration
	// Log is told of layers that cannot be mounted. nil tells nobody.
	Log *slog.Logger
}

// Server answers containerd.
type Server struct {
	cfg  Config
	grpc *grpc.Server
}

// New returns a server over the snapshots in a directory, which is made if it is not
// there. One process at a time may have it, until it ends. Mounts are left as they are.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	logged := logTo(cfg.Log)
	// What is not mounted any more is mounted again when containerd asks for it, so that
	// one layer that cannot be is nobody else's trouble.
	inner, err := snapshot.NewSnapshotter(logged(ctx), cfg.Root, &fileSystem{cfg.Mounter, cfg.Log}, snapshot.NoRestore)
	if err != nil {
		return nil, fmt.Errorf("snapshots in %s: %w", cfg.Root, err)
	}
	s := &Server{cfg: cfg, grpc: grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			return handle(logged(ctx), req)
		},
	))}
	// It is not closed: that would unmount what containers use.
	api.RegisterSnapshotsServer(s.grpc, snapshotservice.FromSnapshotter(patient{inner, cfg.Mounter}))
	return s, nil
}

// Below returns the directory that layers are mounted in, if snapshots are in root.
func Below(root string) string { return filepath.Join(root, "snapshots") }

// Serve answers on l until ctx ends, and then what was asked before. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		late := time.AfterFunc(s.cfg.DrainTimeout, s.grpc.Stop)
		defer late.Stop()
		s.grpc.GracefulStop()
	})
	err := s.grpc.Serve(l)
	if ctx.Err() != nil {
		s.grpc.GracefulStop() // returns when the other has
		return nil
	}
	stop()
	return err
}

// patient has snapshots made on top of others only when there is a mounter: before, what
// a killed one has left may be mounted there, which cannot be looked at.
type patient struct {
	snapshots.Snapshotter
	mounter Mounter
}

func (p patient) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	p.wait(ctx)
	return p.Snapshotter.Prepare(ctx, key, parent, opts...)
}

func (p patient) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	p.wait(ctx)
	return p.Snapshotter.View(ctx, key, parent, opts...)
}

// Cleanup implements [snapshots.Cleaner]: it removes what a process that was killed has
// left of snapshots that are no more.
func (p patient) Cleanup(ctx context.Context) error {
	c, ok := p.Snapshotter.(snapshots.Cleaner)
	if !ok {
		return errdefs.ErrNotImplemented
	}
	p.wait(ctx)
	return c.Cleanup(ctx)
}

// wait waits for the mounter. Without one, images whose layers are all unpacked can be
// used nevertheless.
func (p patient) wait(ctx context.Context) { _ = p.mounter.Ready(ctx) }
