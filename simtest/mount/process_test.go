package mount

import (
	"bufio"
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

	"golang.org/x/sys/unix"
)

var granaryBinary string

// TestMain builds the program once.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "granary-mount-")
	if err == nil {
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mount:", err)
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
	granaryBinary = filepath.Join(dir, "granary")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", granaryBinary, "github.com/granary-oci/granary/cmd/granary")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// needFUSE skips a test where nothing can be mounted, or fails it where all should be
// there.
func needFUSE(t *testing.T) {
	t.Helper()
	_, err := os.Stat("/dev/fuse")
	if os.Geteuid() != 0 {
		err = errors.Join(err, errors.New("this is not root"))
	}
	if err != nil {
		missing(t, err.Error())
	}
}

// missing skips a test for want of something, or fails it where all should be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("MISSING: %s; CI has it", what)
	}
	t.Skipf("MISSING: %s; run simtest/e2e/install.sh as root, if that installs it", what)
}

// process is a granary that a test has started.
type process struct {
	cmd  *exec.Cmd
	log  string
	once sync.Once
	err  error
}

// start starts a command that ends with the test. If the test fails, the end of what it
// has printed is shown.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	cmd := exec.Command(granaryBinary, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return startCommand(t, cmd)
}

func startCommand(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	what := cmd.Args[1]
	log, err := os.CreateTemp(t.TempDir(), what+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &process{cmd: cmd, log: log.Name()}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.end(syscall.SIGKILL)
		if out := p.printed(); t.Failed() {
			t.Logf("end of what %s has printed:\n%s", what, out[max(0, len(out)-4000):])
		}
	})
	return p
}

func (p *process) printed() string {
	out, _ := os.ReadFile(p.log)
	return string(out)
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

// node is a granary that serves.
type node struct {
	*process
	admin string
	args  []string
}

func startNode(t *testing.T, upstream string, more ...string) *node {
	t.Helper()
	admin := freeAddress(t)
	n := &node{admin: "http://" + admin, args: append([]string{
		"serve", "--data-dir", t.TempDir(), "--cache-size", "4GiB", "--listen", freeAddress(t), "--admin", admin,
		"--upstream", "registry.test=" + upstream, "--default-upstream", "registry.test",
	}, more...)}
	n.restart(t)
	return n
}

// restart starts the node again, on the same store, after it has ended.
func (n *node) restart(t *testing.T) {
	t.Helper()
	n.process = start(t, n.args...)
	eventually(t, "the node is ready", func() bool {
		resp, err := http.Get(n.admin + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// metric sums the values of a metric whose labels contain a text.
func (n *node) metric(t *testing.T, name, labels string) (sum float64) {
	t.Helper()
	resp, err := http.Get(n.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		what, value, _ := strings.Cut(lines.Text(), " ")
		if !strings.HasPrefix(what, name+"{") || !strings.Contains(what, labels) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
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

// mount mounts app:v1 at a directory.
func mount(t *testing.T, dir string, flags ...string) *process {
	t.Helper()
	p := start(t, append([]string{"mount", "app:v1", dir, "--default-upstream", "registry.test"}, flags...)...)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	p.mounted(t, dir)
	return p
}

// mounted waits until a process says that it has mounted the image at a directory.
func (p *process) mounted(t *testing.T, dir string) {
	t.Helper()
	eventually(t, "the image is mounted", func() bool {
		if strings.Contains(p.printed(), "granary: ") {
			t.Fatalf("mount: %s", p.printed())
		}
		return strings.Contains(p.printed(), "mounted at "+dir)
	})
}
