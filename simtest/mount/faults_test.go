package mount

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/simtest/peers/hostile"
	"github.com/granary-oci/granary/simtest/programs"
	"github.com/granary-oci/granary/tracker"
)

// hang is how long a read is waited for that should have failed long since.
const hang = 3 * time.Minute

// TestTheUpstreamDies has it die in the middle of a read, and come back.
func TestTheUpstreamDies(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	img, files := plainImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	dir := t.TempDir()
	p := mount(t, dir, "--node", n.admin)
	if err := checkFile(dir, "file-0", files["file-0"]); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "file-5"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	r.state.Store(stuck)
	failed := make(chan error, 1)
	go func() { _, err := readFrom(f, 0); failed <- err }()
	programs.Eventually(t, "the registry is asked", func() bool { return r.held.Load() > 0 })
	r.state.Store(dead)
	if err := checkFile(dir, "file-0", files["file-0"]); err != nil {
		t.Errorf("what is here, while the upstream is dead: %v", err)
	}
	select {
	case err := <-failed:
		if !errors.Is(err, unix.EIO) {
			t.Errorf("what is not here, while the upstream is dead: %v", err)
		}
	case <-time.After(hang):
		t.Fatal("a read hangs")
	}
	if err := checkFile(dir, "file-0", files["file-0"]); err != nil {
		t.Errorf("what is here, after that: %v", err)
	}

	r.state.Store(answering)
	programs.Eventually(t, "what is open can be read", func() bool {
		got, err := readFrom(f, 0)
		if err == nil && got != files["file-5"] {
			t.Fatal("wrong bytes")
		}
		return err == nil
	})
	checkFiles(t, dir, files)
	f.Close()
	endWell(t, p, dir)
}

// TestInterruptedReads has programs wait for what does not come.
func TestInterruptedReads(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	img, files := plainImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	dir := t.TempDir()
	p := mount(t, dir, "--node", n.admin)
	if err := checkFile(dir, "file-0", files["file-0"]); err != nil { // the registry is known to give parts
		t.Fatal(err)
	}
	r.state.Store(stuck)
	for i, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		before := r.held.Load()
		cat := exec.Command("cat", filepath.Join(dir, []string{"file-3", "file-6"}[i]))
		cat.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cat.Start(); err != nil {
			t.Fatal(err)
		}
		programs.Eventually(t, "the registry is asked", func() bool { return r.held.Load() > before })
		if err := cat.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cat.Wait() }()
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != signal {
				t.Errorf("%v: cat ended with %v", signal, err)
			}
		case <-time.After(hang):
			t.Errorf("%v: cat hangs", signal)
		}
	}
	r.state.Store(answering)
	checkFiles(t, dir, files)
	endWell(t, p, dir)
}

// TestTheNodeDiesWithManyReaders kills the node again and again.
func TestTheNodeDiesWithManyReaders(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	img, files := plainImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	dir := t.TempDir()
	p := mount(t, dir, "--node", n.admin)
	for range 3 {
		r.state.Store(stuck)
		before := r.held.Load()
		done := make(chan struct{})
		go func() { defer close(done); checkFiles(t, dir, files) }()
		programs.Eventually(t, "the registry is asked, or all is here", func() bool {
			select {
			case <-done:
				return true
			default:
				return r.held.Load() > before
			}
		})
		if err := n.End(syscall.SIGKILL); err == nil {
			t.Error("a killed node ended well")
		}
		r.state.Store(answering)
		n.restart(t)
		<-done
	}
	checkFiles(t, dir, files)
	endWell(t, p, dir)
}

// TestTheDiskIsFull has a node with room for a part of an image.
func TestTheDiskIsFull(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	img, files := plainImage(t)
	r := startRegistry(t, img)
	data := t.TempDir()
	if err := unix.Mount("tmpfs", data, "tmpfs", 0, "size=12m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(data, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	n := startNode(t, r.URL, "--data-dir", data)
	dir := t.TempDir()
	p := mount(t, dir, "--node", n.admin)
	checkFiles(t, dir, files)
	if n.metric(t, "granary_store_faults_total", `kind="full"`) == 0 {
		t.Error("the disk was not full")
	}
	endWell(t, p, dir)
	again := mount(t, dir, "--node", n.admin)
	checkFiles(t, dir, files)
	endWell(t, again, dir)
}

// TestATableOfAnotherDigest has a layer's table be another than the manifest says.
func TestATableOfAnotherDigest(t *testing.T) {
	needFUSE(t)
	img := &image{blobs: make(map[string][]byte)}
	var tar bytes.Buffer
	tar.Write(command(t, "tar", "--create", "--directory", t.TempDir(), "."))
	layer := img.addStargz(t, tar.Bytes())
	layer.Annotations[estargz.TOCJSONDigestAnnotation] = string(digest.FromString("another table"))
	img.finish(t, layer)
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	dir := t.TempDir()
	out, err := exec.Command(granaryBinary, "mount", "app:v1", dir, "--default-upstream", "registry.test", "--node", n.admin).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "but the manifest says") {
		t.Errorf("mount: %v: %s", err, out)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		t.Errorf("%q is there, %v", list, err)
	}
}

// TestAPeerWithWrongBytes has a member of the cluster give junk for its share of a layer.
func TestAPeerWithWrongBytes(t *testing.T) {
	needFUSE(t)
	t.Parallel()
	img, files := plainImage(t)
	r := startRegistry(t, img)
	const secret = "the secret of these two"
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(programs.FreeAddress(t), ":")
	n := startNode(t, r.URL, "--cluster-secret-file", file, "--p2p-listen", "/ip4/127.0.0.1/tcp/"+port, "--gossip-listen", programs.FreeAddress(t))
	how, _ := hostile.Named("wrong-bytes")
	junk := n.infiltrate(t, img, how, secret)
	dir := t.TempDir()
	p := mount(t, dir, "--node", n.admin)
	checkFiles(t, dir, files)
	if junk.Asked() == 0 || n.metric(t, "granary_corrupt_total", `source="peer"`) == 0 {
		t.Errorf("the peer was asked %d times", junk.Asked())
	}
	for _, m := range n.cluster(t).Members {
		if m.ID == junk.ID() && m.State != how.State {
			t.Errorf("the peer is %s, want %s", m.State, how.State)
		}
	}
	endWell(t, p, dir)
}

// infiltrate makes a hostile member one of the node's cluster, which owns some of the
// image's layer.
func (n *node) infiltrate(t *testing.T, img *image, how hostile.Behaviour, secret string) *hostile.Member {
	t.Helper()
	cluster := n.cluster(t)
	h, err := hostile.Start(hostile.Config{
		Identity: ownerOf(t, img, cluster), P2P: "/ip4/127.0.0.1/tcp/0", Gossip: "127.0.0.1:0", Secrets: [][]byte{[]byte(secret)}, Join: []string{cluster.Gossip},
	}, how)
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	t.Cleanup(func() {
		leave()
		if err := <-ended; err != nil {
			t.Logf("the hostile member ended with %v", err)
		}
	})
	programs.Eventually(t, "the hostile member is one", func() bool { return n.metric(t, "granary_members", `state="up"`) == 1 })
	return h
}

// ownerOf returns an identity that owns a part of the image's layer, and not all of it.
func ownerOf(t *testing.T, img *image, cluster clusterStatus) *libp2p.Identity {
	t.Helper()
	var manifest ocispec.Manifest
	if err := json.Unmarshal(img.manifest, &manifest); err != nil {
		t.Fatal(err)
	}
	layer := manifest.Layers[0]
	for {
		identity, err := libp2p.NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		self := tracker.Peer{ID: identity.ID(), Weight: hostile.Weight}
		view := tracker.NewView(self, []tracker.Peer{cluster.Members[0].Peer})
		owned, stripes := 0, int((layer.Size+chunk.StripeSize-1)/chunk.StripeSize)
		for i := range stripes {
			if view.Owners(tracker.StripeKey(layer.Digest, i), 1)[0].ID == self.ID {
				owned++
			}
		}
		if owned > 1 && owned < stripes {
			return identity
		}
	}
}

// clusterStatus is what a node says of its cluster.
type clusterStatus struct {
	Gossip  string
	Members []p2p.PeerStatus
}

func (n *node) cluster(t *testing.T) clusterStatus {
	t.Helper()
	resp, err := http.Get(n.admin + "/api/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s struct{ Cluster clusterStatus }
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s.Cluster
}
