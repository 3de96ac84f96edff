package e2e

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/programs"
)

// wire passes connections on to a registry, and can hold or cut them.
type wire struct {
	url   string
	cutAt atomic.Int64 // bytes towards the client after which a connection is cut, 0 for never
	rate  atomic.Int64 // bytes per second of a connection, 0 for all there is
	sent  atomic.Int64 // bytes towards the client
}

func startWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &wire{url: "http://" + l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.pass(c, strings.TrimPrefix(to, "http://"))
		}
	}()
	return w
}

func (w *wire) pass(c net.Conn, to string) {
	defer c.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	go func() { _, _ = io.Copy(up, c); up.Close() }()
	p := make([]byte, 64<<10)
	for n := int64(0); ; {
		k, err := up.Read(p)
		if k > 0 {
			if _, err := c.Write(p[:k]); err != nil {
				return
			}
			n += int64(k)
			w.sent.Add(int64(k))
		}
		if cut := w.cutAt.Load(); err != nil || cut > 0 && n > cut {
			return
		}
		if rate := w.rate.Load(); rate > 0 {
			time.Sleep(time.Duration(k) * time.Second / time.Duration(rate))
		}
	}
}

func largest() (d digest.Digest, size int64) {
	for _, l := range image.Layers {
		if l.Size > size {
			d, size = l.Digest, l.Size
		}
	}
	return d, size
}

// fetch reads a blob through a node and compares its digest.
func fetch(t *testing.T, n *node, d digest.Digest) {
	t.Helper()
	resp, err := http.Get(n.url + "/v2/go/blobs/" + string(d))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	v := d.Verifier()
	if _, err := io.Copy(v, resp.Body); err != nil || !v.Verified() {
		t.Errorf("blob %s: %s, %v", d, resp.Status, err)
	}
}

func TestRegistryCutMidBody(t *testing.T) {
	t.Parallel()
	r := startRegistry(t)
	w := startWire(t, r.URL)
	w.cutAt.Store(5<<20 + 12345)
	n := startNode(t, w.url)
	d, size := largest()
	fetch(t, n, d)
	if sent := w.sent.Load(); sent > size*3/2 {
		t.Errorf("%d bytes left the registry for a blob of %d", sent, size)
	}
}

func TestRegistryKilledBetweenTwoPulls(t *testing.T) {
	t.Parallel()
	r := startRegistry(t)
	n := startNode(t, r.URL)
	for _, l := range image.Layers {
		fetch(t, n, l.Digest)
	}
	_ = r.End(syscall.SIGKILL)
	for _, l := range image.Layers {
		fetch(t, n, l.Digest)
	}
	if err := n.End(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	n.restart(t)
	for _, l := range image.Layers {
		fetch(t, n, l.Digest)
	}
}

// TestKilledInTheMiddle kills the node while it fills, and damages a file while
// it is down. What it serves afterwards is right, and it keeps what it had.
func TestKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	r := startRegistry(t)
	w := startWire(t, r.URL)
	n := startNode(t, w.url)
	d, size := largest()
	w.rate.Store(1 << 20)
	go func() {
		if resp, err := http.Get(n.url + "/v2/go/blobs/" + string(d)); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	programs.Eventually(t, "half of it has come", func() bool { return w.sent.Load() > size/2 })
	time.Sleep(2500 * time.Millisecond) // two syncs
	if err := n.End(syscall.SIGKILL); err == nil {
		t.Error("the node was not killed")
	}
	f, err := os.OpenFile(filepath.Join(n.dir, "blobs/sha256", d.Encoded()[:2], d.Encoded()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 1000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	w.rate.Store(0)
	w.sent.Store(0)
	n.restart(t)
	fetch(t, n, d)
	if sent := w.sent.Load(); sent > size*3/4 {
		t.Errorf("after the kill %d of %d bytes were fetched again", sent, size)
	}
	if n.metric(t, "granary_corrupt_total", `source="disk"`) != 1 {
		t.Error("the damaged chunk was not counted, once")
	}
	if out := programs.Run(t, nil, granaryBinary, "fsck", "--node", n.admin, "--data-dir", n.dir); !strings.Contains(out, " 0 wrong") {
		t.Errorf("fsck after the healing: %s", out)
	}
}

// TestTerminatedInTheMiddle sends SIGTERM during a pull, which ends as it should.
func TestTerminatedInTheMiddle(t *testing.T) {
	t.Parallel()
	r := startRegistry(t)
	w := startWire(t, r.URL)
	w.rate.Store(8 << 20)
	n := startNode(t, w.url)
	d, size := largest()
	resp, err := http.Get(n.url + "/v2/go/blobs/" + string(d))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	v := d.Verifier()
	if _, err := io.CopyN(v, resp.Body, size/4); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- n.End(syscall.SIGTERM) }()
	programs.Eventually(t, "it no longer accepts", func() bool { return !programs.Answers(n.url + "/v2/") })
	if _, err := io.Copy(v, resp.Body); err != nil || !v.Verified() {
		t.Errorf("the pull that was under way: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the node ended with %v", err)
	}
}

// TestNoFlagsNoPrivileges runs the node as nobody, with nothing said.
func TestNoFlagsNoPrivileges(t *testing.T) {
	programs.NeedRoot(t)
	for _, a := range []string{"127.0.0.1:5050", "127.0.0.1:5051"} {
		l, err := net.Listen("tcp", a)
		if err != nil {
			programs.Missing(t, a+", which something on this machine is using")
		}
		l.Close()
	}
	home, err := os.MkdirTemp("", "granary-home-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	const nobody = 65534
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	// The binary is in a folder that only root enters.
	binary := filepath.Join(home, "granary")
	programs.Run(t, nil, "cp", granaryBinary, binary)
	cmd := exec.Command(binary, "serve")
	cmd.Env = []string{"HOME=" + home, "PATH=/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	programs.Eventually(t, "it is ready", func() bool { return programs.Answers("http://127.0.0.1:5051/readyz") })
	if !programs.Answers("http://127.0.0.1:5050/v2/") {
		t.Error("the registry face does not answer")
	}
	if _, err := os.Stat(filepath.Join(home, ".cache/granary/index.db")); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
