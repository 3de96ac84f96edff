package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/fuse/mounter"
)

// Mounter keeps mounts of layers: [mounter.Client] is one.
type Mounter interface {
	// Ready waits, for a while, until there is one.
	Ready(ctx context.Context) error
	// Mount mounts a layer at an empty directory, once. An error leaves that empty.
	Mount(ctx context.Context, dir string, l mounter.Layer) error
	// Mounted is [mounter.ErrNotMounted] if nothing is mounted at a directory, and served.
	Mounted(ctx context.Context, dir string) error
	// Unmount returns nil when nothing is mounted at a directory.
	Unmount(ctx context.Context, dir string) error
}

// fileSystem mounts layers for stargz-snapshotter's snapshots.
type fileSystem struct {
	mounter Mounter
	log     *slog.Logger
}

// Mount implements snapshot.FileSystem. After an error containerd fetches the layer.
func (f *fileSystem) Mount(ctx context.Context, dir string, labels map[string]string) error {
	l, err := layerOf(labels)
	if err != nil {
		f.log.Info("a layer is left to containerd", "error", err)
		return err
	}
	begin := time.Now()
	err = f.mounter.Mount(ctx, dir, l)
	if err != nil {
		f.log.Warn("a layer cannot be mounted, and is left to containerd", "image", l.Image, "layer", l.Digest, "after", time.Since(begin), "error", err)
	}
	return err
}

// Check implements snapshot.FileSystem: it is nil if a layer is mounted, or could be
// mounted now. After a reboot, or if the mounter was killed, none is at first.
func (f *fileSystem) Check(ctx context.Context, dir string, labels map[string]string) error {
	err := f.mounter.Mounted(ctx, dir)
	if !errors.Is(err, mounter.ErrNotMounted) {
		return err
	}
	l, err := layerOf(labels)
	if err != nil {
		return err
	}
	if err = f.mounter.Mount(ctx, dir, l); err != nil {
		f.log.Error("a layer that a container needs cannot be mounted again", "image", l.Image, "layer", l.Digest, "error", err)
	}
	return err
}

// Unmount implements snapshot.FileSystem. It is asked of all snapshots, mounted or not.
func (f *fileSystem) Unmount(ctx context.Context, dir string) error {
	return f.mounter.Unmount(ctx, dir)
}

// maxComing bounds the layers that are said to be asked for next. A label of containerd's
// has room for half as many.
const maxComing = 128

// layerOf returns the layer that labels speak of.
func layerOf(labels map[string]string) (l mounter.Layer, err error) {
	l.Image = labels[snapshotters.TargetRefLabel]
	l.Manifest = digest.Digest(labels[snapshotters.TargetManifestDigestLabel])
	l.Digest = digest.Digest(labels[snapshotters.TargetLayerDigestLabel])
	if l.Image == "" || l.Digest == "" || l.Manifest == "" {
		return l, errors.New("containerd does not say which layer of which image is meant: its configuration has no snapshot annotations")
	}
	for _, d := range []digest.Digest{l.Manifest, l.Digest} {
		if err := d.Validate(); err != nil {
			return l, fmt.Errorf("label with digest %q: %w", string(d), err)
		}
	}
	for s := range strings.SplitSeq(labels[snapshotters.TargetImageLayersLabel], ",") {
		if d := digest.Digest(s); d != l.Digest && d.Validate() == nil && len(l.Coming) < maxComing {
			l.Coming = append(l.Coming, d)
		}
	}
	return l, nil
}
