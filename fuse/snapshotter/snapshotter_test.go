package snapshotter

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestAsContainerdAsks asks a server for what containerd asks it.
func TestAsContainerdAsks(t *testing.T) {
	m := &mounts{at: make(map[string]bool)}
	root := t.TempDir()
	s, err := New(t.Context(), Config{Root: root, Mounter: m, DrainTimeout: time.Second})
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip("MISSING: ", err) // a file system that overlayfs can write to
	}
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(root, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	asked := namespaces.WithNamespace(t.Context(), "test")
	sn := proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "granary")

	want := labels()
	want[snapshots.LabelSnapshotRef] = "chain"
	if _, err := sn.Prepare(asked, "extract-1", "", snapshots.WithLabels(want)); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("a layer that can be mounted: %v", err)
	}
	if info, err := sn.Stat(asked, "chain"); err != nil || info.Kind != snapshots.KindCommitted {
		t.Errorf("%+v, %v", info, err)
	}
	clear(m.at) // what keeps mounts was killed
	mounted, err := sn.Prepare(asked, "container", "chain")
	if err != nil || len(mounted) != 1 || mounted[0].Type != "overlay" || len(m.at) != 1 {
		t.Errorf("%+v, %v, %v", mounted, err, m.at)
	}
	m.err = context.DeadlineExceeded
	want[snapshots.LabelSnapshotRef] = "other"
	if mounted, err := sn.Prepare(asked, "extract-2", "chain", snapshots.WithLabels(want)); err != nil || len(mounted) != 1 {
		t.Errorf("a layer that cannot be mounted is unpacked to %+v, %v", mounted, err)
	}
	for _, key := range []string{"extract-2", "container", "chain"} {
		if err := sn.Remove(asked, key); err != nil {
			t.Error(err)
		}
	}
	if len(m.at) != 0 {
		t.Errorf("mounted after all was removed: %v", m.at)
	}
	left := filepath.Join(Below(root), "17")
	if err := os.MkdirAll(filepath.Join(left, "fs"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.at[filepath.Join(left, "fs")] = true
	if err := sn.(snapshots.Cleaner).Cleanup(asked); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) || len(m.at) != 0 {
		t.Errorf("after a cleanup: %v, %v", err, m.at)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
