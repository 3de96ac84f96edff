package snapshotter

import (
	"strings"
	"syscall"
	"testing"

	"github.com/granary-oci/granary/simtest/programs"
)

// TestContainersStartFromMounts has one containerd and one node, and lets happen to them
// what does, one thing after the other.
func TestContainersStartFromMounts(t *testing.T) {
	need(t, "containerd", "ctr", "containerd-shim-runc-v2")
	img := makeImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r)
	c := startContainerd(t, n)
	ref := r.ref("app")

	c.pull(t, ref)
	if got := n.mounts(t); got != 3 {
		t.Fatalf("%d layers are mounted", got)
	}
	c.checkTree(t, "after the pull", ref)
	if sent := r.sent.Load(); sent > img.size/2 {
		t.Errorf("%d bytes of %d have left the registry", sent, img.size)
	}

	r.dead.Store(true)
	c.checkTree(t, "without the registry", ref)
	r.dead.Store(false)

	killTheNode(t, c, n, img, ref)

	keeper := n.mounter()
	if err := n.End(syscall.SIGTERM); err != nil {
		t.Errorf("the node: %v", err)
	}
	n.restart(t)
	c.checkTree(t, "after a restart of the node", ref)
	if n.mounter() != keeper {
		t.Error("the mounts were not left as they were")
	}

	endTheMounter(t, c, n, img, ref)
	killTheMounter(t, c, n, r, ref)

	if _, err := c.ctr("image", "rm", "--sync", ref); err != nil {
		t.Fatal(err)
	}
	programs.Eventually(t, "all is unmounted after the image was removed", func() bool { return n.mounts(t) == 0 })
}

// killTheNode kills the node while a container reads what nobody has yet.
func killTheNode(t *testing.T, c *containerd, n *node, img *image, ref string) {
	read := c.startReader(t, ref)
	read.ask(t, 3)
	read.check(t, img, 3)
	keeper := n.mounter()
	if err := n.End(syscall.SIGKILL); err == nil {
		t.Error("a killed node ended well")
	}
	read.ask(t, 3) // which the kernel has
	read.check(t, img, 3)
	read.ask(t, 40) // which waits
	n.restart(t)
	read.check(t, img, 40)
	read.ask(t, 20)
	read.check(t, img, 20)
	if n.mounter() != keeper {
		t.Error("the mounts were not left as they were")
	}
	if err := read.end(); err != nil {
		t.Errorf("the container: %v", err)
	}
	c.checkTree(t, "after the node was killed", ref)
}

// endTheMounter ends what keeps the mounts, as a user does: a container goes on with those
// that it has, and the others get new ones.
func endTheMounter(t *testing.T, c *containerd, n *node, img *image, ref string) {
	read := c.startReader(t, ref)
	keeper := n.mounter()
	if err := syscall.Kill(keeper, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	programs.Eventually(t, "there is another mounter", func() bool { return n.mounter() != 0 && n.mounter() != keeper })
	c.checkTree(t, "after the mounter was ended", ref)
	read.ask(t, 50)
	read.check(t, img, 50)
	if err := read.end(); err != nil {
		t.Errorf("the container: %v", err)
	}
	programs.Eventually(t, "the first mounter is gone", func() bool { return syscall.Kill(keeper, 0) != nil })
}

// killTheMounter kills what keeps the mounts: new containers start nevertheless, at once
// and after the node has been started again.
func killTheMounter(t *testing.T, c *containerd, n *node, r *registry, ref string) {
	kill := func() {
		t.Helper()
		keeper := n.mounter()
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		programs.Eventually(t, "the mounter has ended", func() bool { return n.mounter() != keeper })
	}
	kill()
	programs.Eventually(t, "there is another mounter", func() bool { return n.mounter() != 0 })
	c.checkTree(t, "after the mounter was killed", ref)
	// What came in the second before the node was killed it may have fetched again. Now all
	// is there.
	sent := r.sent.Load()
	if err := n.End(syscall.SIGTERM); err != nil {
		t.Errorf("the node: %v", err)
	}
	kill()
	r.dead.Store(true)
	n.restart(t)
	c.checkTree(t, "after the mounter was killed while the node was away, and the registry", ref)
	if now := r.sent.Load(); now != sent {
		t.Errorf("%d bytes were fetched again", now-sent)
	}
}

// TestWhatMayNotBeReadIsPulled has an image that the node has no credentials for.
func TestWhatMayNotBeReadIsPulled(t *testing.T) {
	need(t, "containerd", "ctr", "containerd-shim-runc-v2")
	img := makeImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r)
	c := startContainerd(t, n)
	ref := r.ref("private")
	c.pull(t, ref, "--user", username+":"+password)
	if got := n.mounts(t); got != 0 {
		t.Errorf("%d layers are mounted, of an image that the node may not read", got)
	}
	if sent := r.sent.Load(); sent < img.size {
		t.Errorf("%d bytes of %d have left the registry", sent, img.size)
	}
	c.checkTree(t, "unpacked", ref)
}

// TestCRI pulls an image as a kubelet does.
func TestCRI(t *testing.T) {
	need(t, "containerd", "ctr", "containerd-shim-runc-v2", "cri")
	img := makeImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r)
	c := startContainerd(t, n)
	ref := r.ref("app")
	if _, err := run(tool("cri"), c.socket, ref); err != nil {
		t.Fatal(err)
	}
	if got := n.mounts(t); got != 3 {
		t.Errorf("%d layers are mounted", got)
	}
	if sent := r.sent.Load(); sent > img.size/2 {
		t.Errorf("%d bytes of %d have left the registry", sent, img.size)
	}
	if got, err := run(tool("ctr"), append([]string{"-n", "k8s.io"}, c.command(ref, "tree")...)...); err != nil || !strings.Contains(got, "/old/seen") {
		t.Error(got, err)
	}
}
