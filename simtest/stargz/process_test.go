package stargz

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// missing skips a test for want of something, or fails it where all should be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("MISSING: %s; CI has it", what)
	}
	t.Skipf("MISSING: %s; run simtest/e2e/install.sh as root, if that installs it", what)
}

// tools are the programs that a test runs.
type tools struct{ containerd, shim, ctr, snapshotter, granary string }

func needTools(t *testing.T) (all tools) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		missing(t, err.Error())
	}
	if _, err := exec.LookPath("runc"); err != nil {
		missing(t, "runc")
	}
	for name, path := range map[string]*string{
		"containerd": &all.containerd, "containerd-shim-runc-v2": &all.shim, "ctr": &all.ctr, "containerd-stargz-grpc": &all.snapshotter,
	} {
		*path = filepath.Join(os.Getenv("GRANARY_TOOLS"), name)
		if _, err := os.Stat(*path); err != nil {
			missing(t, name+" in $GRANARY_TOOLS")
		}
	}
	all.granary = filepath.Join(t.TempDir(), "granary")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", all.granary, "github.com/granary-oci/granary/cmd/granary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return all
}

// start starts a program that ends with the test, or when end is called. If the test
// fails, the end of what it has printed is shown.
func start(t *testing.T, name string, args ...string) (end func()) {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), filepath.Base(name)+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
	}
	t.Cleanup(func() {
		end()
		if out, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("end of what %s has printed:\n%s", filepath.Base(name), out[max(0, len(out)-5000):])
		}
	})
	return end
}

// eventually waits, for a while, for something to become true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startNode starts a node before a registry, and returns the URL of its registry face,
// and that of its admin listener.
func (p tools) startNode(t *testing.T, upstream string) (url, admin string) {
	t.Helper()
	listen, adminAddress := freeAddress(t), freeAddress(t)
	start(t, p.granary, "serve", "--data-dir", t.TempDir(), "--cache-size", "4GiB", "--listen", listen, "--admin", adminAddress,
		"--upstream", "registry.test="+upstream, "--default-upstream", "registry.test")
	admin = "http://" + adminAddress
	eventually(t, "the node is ready", func() bool {
		resp, err := http.Get(admin + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return "http://" + listen, admin
}

// runtime is a containerd with the snapshotter, which get all from a mirror.
type runtime struct {
	tools
	dir    string // of sockets, whose paths are short, and all else
	mirror string
	end    func() // ends the snapshotter
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
	r.write(t, "hosts/_default/hosts.toml", fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror))
	config := r.write(t, "config.toml", strings.ReplaceAll(containerdConfig, "DIR", dir))
	start(t, p.containerd, "-c", config)
	eventually(t, "containerd answers", func() bool {
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
	config := r.write(t, snapshotterConfig, fmt.Sprintf(
		`{"no_background_fetch": true, "resolver": {"host": {"registry.test": {"mirrors": [{"host": %q, "insecure": true}]}}}}`,
		strings.TrimPrefix(r.mirror, "http://")))
	r.end = start(t, r.snapshotter, socket, filepath.Join(r.dir, "stargz"), config)
	eventually(t, "the snapshotter listens", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
}

const snapshotterConfig = "stargz.json"

func (r *runtime) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

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
