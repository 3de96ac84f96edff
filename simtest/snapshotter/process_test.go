package snapshotter

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var granaryBinary, probeBinary string

// TestMain builds the programs once.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "granary-snapshotter-")
	if err == nil {
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "snapshotter:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func build(dir string) error {
	// Results are remembered for as long as the files that a test has looked at stay the
	// same, and the program is built of these by another process.
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		return err
	}
	granaryBinary, probeBinary = filepath.Join(dir, "granary"), filepath.Join(dir, "probe")
	for to, from := range map[string]string{granaryBinary: "cmd/granary", probeBinary: "simtest/snapshotter/probe"} {
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", to, "github.com/granary-oci/granary/"+from)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	return nil
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
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("MISSING: %v; CI has it", err)
	default:
		t.Skipf("MISSING: %v", err)
	}
}

// tool is a program that install.sh has built.
func tool(name string) string { return filepath.Join(os.Getenv("GRANARY_TOOLS"), name) }

// process is one that a test has started.
type process struct {
	cmd  *exec.Cmd
	log  string
	once sync.Once
	err  error
}

// start starts a command that ends with the test. If the test fails, the end of what it
// has printed is shown.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), filepath.Base(name)+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &process{cmd: exec.Command(name, args...), log: log.Name()}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// containerd's shim is of its own version, and runc the system's.
	p.cmd.Env = append(os.Environ(), "PATH="+os.Getenv("GRANARY_TOOLS")+":"+os.Getenv("PATH"))
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.end(syscall.SIGTERM)
		if out, _ := os.ReadFile(p.log); t.Failed() {
			t.Logf("end of what %s has printed:\n%s", filepath.Base(name), out[max(0, len(out)-6000):])
		}
	})
	return p
}

// end ends a process with a signal and returns how it ended. One that does not end is
// killed after a while.
func (p *process) end(signal syscall.Signal) error {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(signal)
		late := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
		p.err = p.cmd.Wait()
		late.Stop()
	})
	return p.err
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

// node is a granary that is a snapshotter.
type node struct {
	*process
	admin  string
	socket string
	data   string
	args   []string
}

func startNode(t *testing.T, r *registry) *node {
	t.Helper()
	admin, data := freeAddress(t), shortDir(t)
	n := &node{admin: "http://" + admin, data: data, socket: filepath.Join(shortDir(t), "new/snapshotter.sock")}
	host := strings.TrimPrefix(r.URL, "http://")
	n.args = []string{
		"serve", "--data-dir", data, "--cache-size", "4GiB", "--listen", freeAddress(t), "--admin", admin,
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
	n.process = start(t, granaryBinary, n.args...)
	eventually(t, "the node is ready", func() bool {
		resp, err := http.Get(n.admin + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
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
	if n.process != nil {
		_ = n.end(syscall.SIGKILL)
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
	eventually(t, "the mounter has ended", func() bool { return n.mounter() == 0 })
	if left := n.mounts(t); left > 0 {
		t.Errorf("%d mounts are left", left)
	}
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

// shortDir is a folder for sockets, whose paths are short; those of test folders are not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "granary-s-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
