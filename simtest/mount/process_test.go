package mount

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/programs"
)

var granaryBinary string

// TestMain builds the program once.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "granary-mount-")
	if err == nil {
		granaryBinary, err = filepath.Join(dir, "granary"), programs.Build(dir, "cmd/granary")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mount:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
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
		programs.Missing(t, err.Error())
	}
}

// start starts a granary that ends with the test, as by a crash.
func start(t *testing.T, args ...string) *programs.Process {
	t.Helper()
	p := programs.Start(t, granaryBinary, args...)
	p.Quit = syscall.SIGKILL
	return p
}

// node is a granary that serves.
type node struct {
	*programs.Process
	admin string
	args  []string
}

func startNode(t *testing.T, upstream string, more ...string) *node {
	t.Helper()
	admin := programs.FreeAddress(t)
	n := &node{admin: "http://" + admin, args: append([]string{
		"serve", "--data-dir", t.TempDir(), "--cache-size", "4GiB", "--listen", programs.FreeAddress(t), "--admin", admin,
		"--upstream", "registry.test=" + upstream, "--default-upstream", "registry.test",
	}, more...)}
	n.restart(t)
	return n
}

// restart starts the node again, on the same store, after it has ended.
func (n *node) restart(t *testing.T) {
	t.Helper()
	n.Process = start(t, n.args...)
	programs.Eventually(t, "the node is ready", func() bool { return programs.Answers(n.admin + "/readyz") })
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

// mount mounts app:v1 at a directory.
func mount(t *testing.T, dir string, flags ...string) *programs.Process {
	t.Helper()
	p := start(t, append([]string{"mount", "app:v1", dir, "--default-upstream", "registry.test"}, flags...)...)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	mounted(t, p, dir)
	return p
}

// mounted waits until a process says that it has mounted the image at a directory.
func mounted(t *testing.T, p *programs.Process, dir string) {
	t.Helper()
	programs.Eventually(t, "the image is mounted", func() bool {
		if strings.Contains(p.Printed(), "granary: ") {
			t.Fatalf("mount: %s", p.Printed())
		}
		return strings.Contains(p.Printed(), "mounted at "+dir)
	})
}
