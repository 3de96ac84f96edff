package stargz

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/programs"
)

// tools are the programs that a test runs.
type tools struct{ containerd, shim, ctr, snapshotter, granary string }

func needTools(t *testing.T) (all tools) {
	t.Helper()
	programs.NeedRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		programs.Missing(t, err.Error())
	}
	if _, err := exec.LookPath("runc"); err != nil {
		programs.Missing(t, "runc")
	}
	for name, path := range map[string]*string{
		"containerd": &all.containerd, "containerd-shim-runc-v2": &all.shim, "ctr": &all.ctr, "containerd-stargz-grpc": &all.snapshotter,
	} {
		*path = programs.Tool(t, name)
	}
	dir := t.TempDir()
	if err := programs.Build(dir, "cmd/granary"); err != nil {
		t.Fatal(err)
	}
	all.granary = filepath.Join(dir, "granary")
	return all
}

// startNode starts a node before a registry, and returns the URL of its registry face,
// and that of its admin listener.
func (p tools) startNode(t *testing.T, upstream string) (url, admin string) {
	t.Helper()
	listen, adminAddress := programs.FreeAddress(t), programs.FreeAddress(t)
	programs.Start(t, p.granary, "serve", "--data-dir", t.TempDir(), "--cache-size", "4GiB", "--listen", listen, "--admin", adminAddress,
		"--upstream", "registry.test="+upstream, "--default-upstream", "registry.test")
	admin = "http://" + adminAddress
	programs.Eventually(t, "the node is ready", func() bool { return programs.Answers(admin + "/readyz") })
	return "http://" + listen, admin
}

// runtime is a containerd with the snapshotter, which get all from a mirror.
type runtime struct {
	tools
	dir     string // of sockets, whose paths are short, and all else
	mirror  string
	mounter *programs.Process // the snapshotter
}

func (p tools) startRuntime(t *testing.T, mirror string) *runtime {
	t.Helper()
	dir, err := os.MkdirTemp("", "granary-stargz-")
	if err != nil {
		t.Fatal(err)
	}
	r := &runtime{tools: p, dir: dir, mirror: mirror}
	t.Cleanup(func() {
		for _, at := range r.mounts(t) {
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
		_ = os.RemoveAll(dir)
	})
	r.startSnapshotter(t)
	programs.Write(t, r.dir, "hosts/_default/hosts.toml", fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror))
	config := programs.Write(t, r.dir, "config.toml", strings.ReplaceAll(containerdConfig, "DIR", dir))
	programs.Start(t, p.containerd, "-c", config)
	programs.Eventually(t, "containerd answers", func() bool {
		_, err := r.ctr("version")
		return err == nil
	})
	return r
}

const containerdConfig = `version = 3
root = "DIR/root"
state = "DIR/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
[grpc]
  address = "DIR/sock"
[proxy_plugins.stargz]
  type = "snapshot"
  address = "DIR/stargz.sock"
  [proxy_plugins.stargz.exports]
    root = "DIR/stargz"
    enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.transfer.v1.local"]
  config_path = "DIR/hosts"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "stargz"
`

// startSnapshotter starts it on what it has left.
func (r *runtime) startSnapshotter(t *testing.T) {
	t.Helper()
	socket := filepath.Join(r.dir, "stargz.sock")
	_ = os.Remove(socket)
	config := programs.Write(t, r.dir, snapshotterConfig, fmt.Sprintf(
		`{"no_background_fetch": true, "resolver": {"host": {"registry.test": {"mirrors": [{"host": %q, "insecure": true}]}}}}`,
		strings.TrimPrefix(r.mirror, "http://")))
	r.mounter = programs.Start(t, r.snapshotter, socket, filepath.Join(r.dir, "stargz"), config)
	programs.Eventually(t, "the snapshotter listens", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
}

const snapshotterConfig = "stargz.json"

func (r *runtime) ctr(args ...string) (string, error) {
	cmd := exec.Command(r.tools.ctr, append([]string{"-a", filepath.Join(r.dir, "sock")}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("ctr %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return string(out), err
}

func (r *runtime) mustCtr(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.ctr(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mounts returns where the snapshotter has mounted layers.
func (r *runtime) mounts(t *testing.T) (at []string) {
	t.Helper()
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], r.dir) && strings.Contains(line, " - fuse") {
			at = append(at, fields[4])
		}
	}
	return at
}
