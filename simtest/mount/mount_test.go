package mount

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/programs"
	"github.com/granary-oci/granary/toc/treetest"
)

func TestMount(t *testing.T) {
	needFUSE(t)
	img := makeImage(t)
	t.Run("ThroughANode", func(t *testing.T) { throughANode(t, img) })
	t.Run("WithoutANode", func(t *testing.T) { withoutANode(t, img) })
}

// throughANode mounts an image and does to the mount, the node and the registry what
// happens to them.
func throughANode(t *testing.T, img *image) {
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	dir := t.TempDir()
	first := mount(t, dir, "--node", n.admin)

	readWhileTheNodeIsReplaced(t, n, img, dir)
	compare(t, img, dir)
	t.Run("InAnOverlay", func(t *testing.T) { runInOverlay(t, dir) })

	if err := first.End(syscall.SIGKILL); err == nil {
		t.Error("a killed mount ended well")
	}
	sent := r.sent.Load()
	again := mount(t, dir, "--node", n.admin) // over what is left of the first
	compare(t, img, dir)
	if now := r.sent.Load(); now != sent {
		t.Errorf("the second mount took %d answers of the registry", now-sent)
	}
	endWell(t, again, dir)

	r.Close()
	last := mount(t, dir, "--node", n.admin)
	compare(t, img, dir)
	unmountInUse(t, last, dir)
}

// compare compares a mount with the tree that tar has made.
func compare(t *testing.T, img *image, dir string) {
	t.Helper()
	compareTrees(t, img.unpacked, dir, time.Nanosecond)
}

// compareTrees compares a mount with another tree, of which times have a precision.
func compareTrees(t *testing.T, unpacked, dir string, precision time.Duration) {
	t.Helper()
	want, err := treetest.Tree(unpacked, precision)
	if err != nil {
		t.Fatal(err)
	}
	got, err := treetest.Tree(dir, precision)
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.Split(want, "\n")
	for i, line := range strings.Split(got, "\n") {
		if i >= len(theirs) || line != theirs[i] {
			t.Fatalf("mounted:  %s\nunpacked: %s", line, theirs[min(i, len(theirs)-1)])
		}
	}
	if len(got) < len(want) {
		t.Fatal("the mount lacks files")
	}
}

// readWhileTheNodeIsReplaced reads a file that nobody has yet, with an open file and with
// new ones, while the node is killed and comes back.
func readWhileTheNodeIsReplaced(t *testing.T, n *node, img *image, dir string) {
	f, err := os.Open(filepath.Join(dir, "app/big"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.CopyN(sum, f, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := n.End(syscall.SIGKILL); err == nil {
		t.Error("a killed node ended well")
	}
	done := make(chan error, 2)
	go func() { _, err := io.Copy(sum, f); done <- err }()
	go func() { _, err := os.ReadFile(filepath.Join(dir, "usr/noise")); done <- err }()
	n.restart(t)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	want, err := os.ReadFile(filepath.Join(img.unpacked, "app/big"))
	if err != nil {
		t.Fatal(err)
	}
	if all := sha256.Sum256(want); !bytes.Equal(sum.Sum(nil), all[:]) {
		t.Error("what was read is not the file")
	}
}

// runInOverlay runs a program of the image, as a container would.
func runInOverlay(t *testing.T, dir string) {
	merged := overlayOn(t, dir)
	cmd := exec.Command("/app/granary", "version")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: merged}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "granary ") {
		t.Errorf("%s: %v", out, err)
	}
	f, err := os.OpenFile(filepath.Join(merged, "etc/hello"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("more\n"); err != nil {
		t.Error(err)
	}
	f.Close()
	if p, err := os.ReadFile(filepath.Join(merged, "etc/hello")); string(p) != "hello\nmore\n" {
		t.Errorf("what was written above: %q, %v", p, err)
	}
	if p, err := os.ReadFile(filepath.Join(dir, "etc/hello")); string(p) != "hello\n" {
		t.Errorf("what is below: %q, %v", p, err)
	}
}

// overlayOn lays an empty directory over a mount until the test ends.
func overlayOn(t *testing.T, dir string) (merged string) {
	t.Helper()
	top := t.TempDir()
	for _, name := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(top, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged = filepath.Join(top, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+dir+",upperdir="+top+"/upper,workdir="+top+"/work"); err != nil {
		t.Fatal("overlay: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return merged
}

// endWell ends a mount as a user does.
func endWell(t *testing.T, p *programs.Process, dir string) {
	t.Helper()
	endWith(t, syscall.SIGTERM, p, dir)
}

func endWith(t *testing.T, signal syscall.Signal, p *programs.Process, dir string) {
	t.Helper()
	if err := p.End(signal); err != nil {
		t.Errorf("mount: %v", err)
	}
	if !strings.Contains(p.Printed(), "unmounted after") || !strings.Contains(p.Printed(), "of content came") {
		t.Errorf("mount has printed %q", p.Printed())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("after the end %d names are there, %v", len(left), err)
	}
}

// unmountInUse ends a mount of which a file is open: it can be read to its end.
func unmountInUse(t *testing.T, p *programs.Process, dir string) {
	f, err := os.Open(filepath.Join(dir, "usr/mixed"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	programs.Eventually(t, "the mount is not seen any more", func() bool {
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0
	})
	if n, err := io.Copy(io.Discard, f); err != nil || n == 0 {
		t.Errorf("%d bytes of an open file: %v", n, err)
	}
	f.Close()
	const none = 0 // a second SIGTERM would end it at once
	endWith(t, none, p, dir)
}

// withoutANode mounts an image with no node running: the mount has its own.
func withoutANode(t *testing.T, img *image) {
	r := startRegistry(t, img)
	dir := t.TempDir()
	p := mount(t, dir, "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir(), "--upstream", "registry.test="+r.URL)
	compare(t, img, dir)
	endWell(t, p, dir)
}
