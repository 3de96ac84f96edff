package stargz

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const ref = "registry.test/app:v1"

// TestSnapshotter starts containers from an image that comes lazily, through a node.
func TestSnapshotter(t *testing.T) {
	p := needTools(t)
	img := makeImage(t, p.granary)
	r := startRegistry(t, img)
	url, admin := p.startNode(t, r.URL)
	w := startWire(t, url)
	c := p.startRuntime(t, w.URL)

	c.mustCtr(t, "image", "pull", "--hosts-dir", filepath.Join(c.dir, "hosts"), "--snapshotter", "stargz", ref)
	if sent := r.sent.Load(); sent > img.layer.Size/2 {
		t.Errorf("%d bytes of %d left the registry before anything was read", sent, img.layer.Size)
	}
	c.runs(t, "first")
	c.check(t, img, "noise-3")
	if sent := r.sent.Load(); sent > img.layer.Size*9/10 {
		t.Errorf("%d bytes of %d left the registry for a program and a file", sent, img.layer.Size)
	}
	if !w.saw(func(x exchange) bool { return x.ranges == "bytes=0-1" && x.status == http.StatusPartialContent }) {
		t.Error("no probe was answered with a part")
	}
	if !w.saw(func(x exchange) bool { return x.method == http.MethodHead && x.status == http.StatusOK }) {
		t.Error("no HEAD was answered")
	}

	out, err := exec.Command(p.granary, "pull", "app:v1", "--node", admin, "--default-upstream", "registry.test").CombinedOutput()
	if err != nil {
		t.Fatalf("pull: %v\n%s", err, out)
	}
	r.Close()
	c.check(t, img, "noise-1")
	c.runs(t, "second")
	c.readsRanges(t, img, w)

	_ = c.mounter.End(syscall.SIGTERM) // and mounts all anew
	c.startSnapshotter(t)
	for name := range img.files {
		c.check(t, img, name)
	}
	c.runs(t, "third")
	if w.saw(func(x exchange) bool { return x.status >= 400 }) {
		t.Error("something was refused")
	}
}

// readsRanges reads the layer as the snapshotter would that has pieces of it.
func (r *runtime) readsRanges(t *testing.T, img *image, w *wire) {
	t.Helper()
	config := filepath.Join(r.dir, snapshotterConfig)
	out, err := exec.Command(r.snapshotter, "read", config, ref, string(img.layer.Digest), strconv.FormatInt(img.layer.Size, 10)).Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != string(img.layer.Digest) {
		t.Errorf("the layer is read as %s, %v", got, err)
	}
	if !w.saw(func(x exchange) bool {
		return strings.Count(x.ranges, ",") >= 4 && x.status == http.StatusPartialContent && strings.HasPrefix(x.contentType, "multipart/byteranges")
	}) {
		t.Error("several ranges were not answered at once")
	}
}

// runs runs a container.
func (r *runtime) runs(t *testing.T, name string) {
	t.Helper()
	out := r.mustCtr(t, "run", "--rm", "--runtime", r.shim, "--snapshotter", "stargz", ref, name, "/granary", "version")
	if !strings.HasPrefix(out, "granary ") {
		t.Errorf("the container has printed %q", out)
	}
}

// check reads a file where the snapshotter has mounted the layer.
func (r *runtime) check(t *testing.T, img *image, name string) {
	t.Helper()
	at := r.mounts(t)
	if len(at) != 1 {
		t.Fatalf("mounted are %q", at)
	}
	if p, err := os.ReadFile(filepath.Join(at[0], name)); err != nil || !bytes.Equal(p, img.files[name]) {
		t.Errorf("%s: %d bytes, %v", name, len(p), err)
	}
}
