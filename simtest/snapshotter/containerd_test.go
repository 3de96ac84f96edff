package snapshotter

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/granary-oci/granary/simtest/programs"
)

// containerd is one with an empty store, whose containers' roots the node makes.
type containerd struct {
	socket string
	ran    int
}

const config = `version = 3
root = "DIR/root"
state = "DIR/state"
[grpc]
  address = "DIR/sock"
[ttrpc]
  address = "DIR/ttrpc"
[proxy_plugins.granary]
  type = "snapshot"
  address = "SNAPSHOTTER"
  [proxy_plugins.granary.exports]
    enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "granary"
  disable_snapshot_annotations = false
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["DIR/none"]
  conf_dir = "DIR/none"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.transfer.v1.local"]
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "granary"
`

func startContainerd(t *testing.T, n *node) *containerd {
	t.Helper()
	dir := programs.ShortDir(t)
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(strings.NewReplacer("DIR", dir, "SNAPSHOTTER", n.socket).Replace(config)), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &containerd{socket: filepath.Join(dir, "sock")}
	start(t, tool("containerd"), "-c", file)
	programs.Eventually(t, "containerd answers", func() bool {
		_, err := c.ctr("version")
		return err == nil
	})
	return c
}

func (c *containerd) ctr(args ...string) (string, error) {
	return run(tool("ctr"), append([]string{"-a", c.socket}, args...)...)
}

func (c *containerd) pull(t *testing.T, ref string, flags ...string) {
	t.Helper()
	args := append([]string{"image", "pull", "--plain-http", "--snapshotter", "granary"}, flags...)
	if _, err := c.ctr(append(args, ref)...); err != nil {
		t.Fatal(err)
	}
}

func (c *containerd) command(ref string, args ...string) []string {
	c.ran++
	return append([]string{"-a", c.socket, "run", "--rm", "--snapshotter", "granary", ref, fmt.Sprintf("test-%d-%d", os.Getpid(), c.ran), "/app/probe"}, args...)
}

// tree runs a container that lists its files.
func (c *containerd) tree(ref string) (string, error) {
	out, err := run(tool("ctr"), c.command(ref, "tree")...)
	var ours strings.Builder
	for line := range strings.Lines(out) {
		for _, dir := range []string{"/app", "/etc", "/old", "/private", "/gone"} {
			if strings.HasPrefix(line, dir+" ") || strings.HasPrefix(line, dir+"/") {
				ours.WriteString(line)
			}
		}
	}
	return ours.String(), err
}

// checkTree runs a container, which is to see what the layers have. For some seconds after
// a snapshotter was away, containerd does not try to reach it.
func (c *containerd) checkTree(t *testing.T, when, ref string) {
	t.Helper()
	var got string
	var err error
	programs.Eventually(t, when+", containerd finds the snapshotter", func() bool {
		got, err = c.tree(ref)
		return err == nil || !strings.Contains(err.Error(), "connection refused")
	})
	switch {
	case err != nil:
		t.Fatalf("%s: %v", when, err)
	case got != wantTree:
		t.Fatalf("%s: the container sees\n%s", when, got)
	}
}

// reader is a container that reads pieces of the large file as it is told.
type reader struct {
	cmd     *exec.Cmd
	to      io.WriteCloser
	answers *bufio.Scanner
}

func (c *containerd) startReader(t *testing.T, ref string) *reader {
	t.Helper()
	r := &reader{cmd: exec.Command(tool("ctr"), c.command(ref, "pieces", "/app/big")...)}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r.cmd.Stderr = os.Stderr
	from, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if r.to, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.end() })
	r.answers = bufio.NewScanner(from)
	if got := r.answer(); got != "ready" {
		t.Fatalf("the container says %q", got)
	}
	return r
}

// end ends the container.
func (r *reader) end() error {
	if err := r.to.Close(); err != nil {
		return nil // it has ended before
	}
	return r.cmd.Wait()
}

// ask has the container read the MiB at an offset.
func (r *reader) ask(t *testing.T, mib int) {
	t.Helper()
	if _, err := fmt.Fprintln(r.to, mib); err != nil {
		t.Fatal(err)
	}
}

// check waits for what the container has read.
func (r *reader) check(t *testing.T, img *image, mib int) {
	t.Helper()
	sum := sha256.Sum256(img.big[mib<<20 : (mib+1)<<20])
	if got, want := r.answer(), fmt.Sprintf("%d %x", mib, sum); got != want {
		t.Errorf("the container has read %s, not %s", got, want)
	}
}

func (r *reader) answer() string {
	r.answers.Scan()
	return r.answers.Text()
}
