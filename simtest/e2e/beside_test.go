package e2e

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
)

// TestContainerdsContentIsLent by a node that keeps nothing itself, to one whose containerd has
// nothing yet, when the registry is dead.
func TestContainerdsContentIsLent(t *testing.T) {
	needRoot(t)
	daemon, ctr := program(t, "containerd"), program(t, "ctr")
	r := startRegistry(t)
	pull := func(t *testing.T, c *containerd, n *node) {
		t.Helper()
		c.run(t, "image", "pull", "--hosts-dir", hostsDir(t, n), "--snapshotter", "overlayfs", upstreamName+"/go:multi")
		checkBlobs(t, c.blob)
	}
	var nodes []*node
	var runtimes []*containerd
	secret := write(t, t.TempDir(), "secret", "a secret of these two\n")
	gossip := []string{freeAddress(t), freeAddress(t)}
	for i := range 2 {
		c := startContainerd(t, daemon, ctr, containerdConfig16)
		_, p2p, _ := net.SplitHostPort(freeAddress(t))
		nodes = append(nodes, startNode(t, r.url, "--keep", "none", "--content-dir", filepath.Join(c.root, "io.containerd.content.v1.content"),
			"--cluster-secret-file", secret, "--p2p-listen", "/ip4/127.0.0.1/tcp/"+p2p, "--gossip-listen", gossip[i], "--join", gossip[1-i]))
		runtimes = append(runtimes, c)
	}
	pull(t, runtimes[0], nodes[0])
	if kept := nodes[0].metric(t, "granary_store_bytes"); kept > 1<<20 {
		t.Errorf("the node keeps %d bytes of what its containerd has", kept)
	}
	eventually(t, "what containerd has is announced", func() bool {
		moved := nodes[1].metric(t, "granary_upstream_bytes_total") + nodes[0].metric(t, "granary_upstream_bytes_total")
		_, err := tryRun(t, nil, granaryBinary, "pull", "--node", nodes[1].admin, upstreamName+"/go:multi")
		return err == nil && nodes[1].metric(t, "granary_upstream_bytes_total")+nodes[0].metric(t, "granary_upstream_bytes_total")-moved < 64<<10
	})
	if err := r.end(syscall.SIGKILL); err == nil {
		t.Error("the registry was not killed")
	}
	pull(t, runtimes[1], nodes[1])
}
