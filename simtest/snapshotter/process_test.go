package snapshotter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/granary-oci/granary/simtest/programs"
)

var granaryBinary, probeBinary string

// TestMain builds the programs once.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "granary-snapshotter-")
	if err == nil {
		granaryBinary, probeBinary = filepath.Join(dir, "granary"), filepath.Join(dir, "probe")
		err = programs.Build(dir, "cmd/granary", "simtest/snapshotter/probe")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "snapshotter:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// need skips a test where nothing can be mounted or run, or fails it where all should be
// there.
func need(t *testing.T, tools ...string) {
	t.Helper()
	_, err := os.Stat("/dev/fuse")
	if os.Geteuid() != 0 {
		err = errors.Join(err, errors.New("this is not root"))
	}
	if _, rerr := exec.LookPath("runc"); rerr != nil {
		err = errors.Join(err, rerr)
	}
	for _, name := range tools {
		_, terr := os.Stat(tool(name))
		err = errors.Join(err, terr)
	}
	if err != nil {
		programs.Missing(t, err.Error())
	}
}

// tool is a program that install.sh has built.
func tool(name string) string { return filepath.Join(os.Getenv("GRANARY_TOOLS"), name) }

// start starts a program that ends with the test.
func start(t *testing.T, name string, args ...string) *programs.Process {
	t.Helper()
	cmd := exec.Command(name, args...)
	// containerd's shim is of its own version, and runc the system's.
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("GRANARY_TOOLS")+":"+os.Getenv("PATH"))
	return programs.StartCommand(t, cmd)
}

// run returns what a program prints.
func run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %v: %w\n%s%s", filepath.Base(name), args, err, out.String(), errs.String())
	}
	return out.String(), nil
}

// node is a granary that is a snapshotter.
type node struct {
	*programs.Process
	admin  string
	socket string
	data   string
	args   []string
}

func startNode(t *testing.T, r *registry) *node {
	t.Helper()
	admin, data := programs.FreeAddress(t), programs.ShortDir(t)
	n := &node{admin: "http://" + admin, data: data, socket: filepath.Join(programs.ShortDir(t), "new/snapshotter.sock")}
	host := strings.TrimPrefix(r.URL, "http://")
	n.args = []string{
		"serve", "--data-dir", data, "--cache-size", "4GiB", "--listen", programs.FreeAddress(t), "--admin", admin,
		"--upstream", host + "=" + r.URL, "--docker-config", emptyConfig(t), "--snapshotter-listen", "unix://" + n.socket,
	}
	t.Cleanup(func() { n.endMounter(t) })
	n.restart(t)
	return n
}

func emptyConfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// restart starts the node again, on the same store, after it has ended.
func (n *node) restart(t *testing.T) {
	t.Helper()
	n.Process = start(t, granaryBinary, n.args...)
	programs.Eventually(t, "the node is ready", func() bool { return programs.Answers(n.admin + "/readyz") })
}

// mounter returns the number of the process that keeps the node's mounts, or 0.
func (n *node) mounter() int {
	p, err := os.ReadFile(filepath.Join(n.data, "mounter/lock"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(string(p)), "pid "))
	if err != nil || syscall.Kill(pid, 0) != nil {
		return 0
	}
	return pid
}

// mounts returns how many layers are mounted for the node.
func (n *node) mounts(t *testing.T) int {
	t.Helper()
	p, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(p), " "+n.data+"/snapshotter/snapshots/")
}

// endMounter ends the process that keeps mounts, which leaves none.
func (n *node) endMounter(t *testing.T) {
	if n.Process != nil {
		_ = n.End(syscall.SIGKILL)
	}
	if t.Failed() {
		log, _ := os.ReadFile(filepath.Join(n.data, "mounter/log"))
		t.Logf("end of the mounter's log:\n%s", log[max(0, len(log)-6000):])
	}
	pid := n.mounter()
	if pid == 0 {
		return
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	programs.Eventually(t, "the mounter has ended", func() bool { return n.mounter() == 0 })
	if left := n.mounts(t); left > 0 {
		t.Errorf("%d mounts are left", left)
	}
}
