package e2e

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/programs"
)

// startPair starts two nodes that know each other.
func startPair(t *testing.T, upstream string, settings func(i int) []string) (nodes []*node) {
	t.Helper()
	secret := programs.Write(t, t.TempDir(), "secret", "a secret of these two\n")
	gossip := []string{programs.FreeAddress(t), programs.FreeAddress(t)}
	for i := range 2 {
		_, p2p, _ := net.SplitHostPort(programs.FreeAddress(t))
		nodes = append(nodes, startNode(t, upstream, append(settings(i), "--cluster-secret-file", secret,
			"--p2p-listen", "/ip4/127.0.0.1/tcp/"+p2p, "--gossip-listen", gossip[i], "--join", gossip[1-i])...))
	}
	programs.Eventually(t, "they know each other", func() bool { return nodes[0].metric(t, "granary_members", "up") == 1 })
	return nodes
}

// TestContainerdsContentIsLent by a node that keeps nothing itself, to one whose containerd has
// nothing yet, when the registry is dead.
func TestContainerdsContentIsLent(t *testing.T) {
	t.Parallel()
	programs.NeedRoot(t)
	daemon, ctr := programs.OfSystem(t, "containerd"), programs.OfSystem(t, "ctr")
	r := startRegistry(t)
	pull := func(t *testing.T, c *containerd, n *node) {
		t.Helper()
		c.run(t, "image", "pull", "--hosts-dir", hostsDir(t, n), "--snapshotter", "overlayfs", upstreamName+"/go:multi")
		checkBlobs(t, c.blob)
	}
	runtimes := []*containerd{startContainerd(t, daemon, ctr, containerdConfig16), startContainerd(t, daemon, ctr, containerdConfig16)}
	nodes := startPair(t, r.URL, func(i int) []string {
		return []string{"--keep", "none", "--content-dir", filepath.Join(runtimes[i].root, "io.containerd.content.v1.content")}
	})
	pull(t, runtimes[0], nodes[0])
	if kept := nodes[0].metric(t, "granary_store_bytes"); kept > 1<<20 {
		t.Errorf("the node keeps %d bytes of what its containerd has", kept)
	}
	if err := r.End(syscall.SIGKILL); err == nil {
		t.Error("the registry was not killed")
	}
	programs.Eventually(t, "what containerd has is announced, to the smallest blob", func() bool {
		_, err := programs.TryRun(t, nil, ctr, "-a", runtimes[1].socket, "image", "pull", "--hosts-dir", hostsDir(t, nodes[1]),
			"--snapshotter", "overlayfs", upstreamName+"/go:multi")
		return err == nil
	})
	checkBlobs(t, runtimes[1].blob)
}

// disk returns how many bytes of the disk directories take, as far as that can be told while they
// are written to.
func disk(t *testing.T, dirs ...string) (n int64) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			var info fs.FileInfo
			if err == nil {
				info, err = e.Info()
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil {
				n += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return n
}

// Of a blob of 10 GiB that consists of a line for each MiB and else of zeros.
const (
	largeSize   = 10 << 30
	largeDigest = digest.Digest("sha256:d5c19bfe39de650613b05b0c3307ea08c28f796b44dfead903430a000a61beeb")
)

// large is such a blob.
type large struct{ size int64 }

// ReadAt implements [io.ReaderAt].
func (l large) ReadAt(p []byte, off int64) (n int, err error) {
	clear(p)
	for mib := off >> 20 << 20; mib < min(off+int64(len(p)), l.size); mib += 1 << 20 {
		line := fmt.Sprintf("%d\n", mib)
		if at := mib - off; at >= 0 {
			copy(p[at:], line)
		} else if -at < int64(len(line)) {
			copy(p, line[-at:])
		}
	}
	n = int(min(int64(len(p)), l.size-off))
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// write writes the blob to a file, without the zeros.
func (l large) write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(l.size); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < l.size; off += 1 << 20 {
		if _, err := f.WriteAt(fmt.Appendf(nil, "%d\n", off), off); err != nil {
			t.Fatal(err)
		}
	}
}

// serveLarge serves the blob in any repository, and returns the registry's URL.
func serveLarge(t *testing.T, l large) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if !strings.HasSuffix(q.URL.Path, string(largeDigest)) {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		http.ServeContent(w, q, "", time.Time{}, io.NewSectionReader(l, 0, l.size))
	}))
	t.Cleanup(s.Close)
	return s.URL
}

const largePath = "/v2/models/llm/blobs/" + string(largeDigest)

// pullLarge reads the blob through a node, or a part of it, and returns how much that was.
func pullLarge(t *testing.T, n *node, part string) int64 {
	t.Helper()
	q, err := http.NewRequest(http.MethodGet, n.url+largePath, nil)
	if err != nil {
		t.Fatal(err)
	}
	if part != "" {
		q.Header.Set("Range", part)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	size, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		t.Fatalf("%s after %d bytes: %v", resp.Status, size, err)
	}
	return size
}

// TestTheDiskOfALargeBlob that a runtime keeps, of 10 GiB, is the runtime's alone: a node that
// lends it to others takes next to nothing.
func TestTheDiskOfALargeBlob(t *testing.T) {
	l, dir := large{largeSize}, t.TempDir()
	nodes := startPair(t, serveLarge(t, l), func(i int) []string {
		if i == 0 {
			return []string{"--keep", "none", "--content-dir", dir}
		}
		return []string{"--keep", "none"}
	})
	if n := pullLarge(t, nodes[0], ""); n != l.size {
		t.Fatalf("%d bytes", n)
	}
	l.write(t, filepath.Join(dir, "blobs/sha256", largeDigest.Encoded()))
	programs.Eventually(t, "the other node is lent what the runtime has", func() bool {
		before := nodes[1].metric(t, "granary_upstream_bytes_total") + nodes[0].metric(t, "granary_upstream_bytes_total")
		pullLarge(t, nodes[1], fmt.Sprintf("bytes=%d-%d", 5<<30, 5<<30+4<<20-1))
		return nodes[1].metric(t, "granary_upstream_bytes_total")+nodes[0].metric(t, "granary_upstream_bytes_total") == before
	})
	for _, n := range nodes {
		if size := disk(t, n.dir); size > 16<<20 {
			t.Errorf("a node takes %d bytes of the disk", size)
		}
	}
}
