package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/programs"
	"github.com/granary-oci/granary/toc/treetest"
)

// versionTar is the tar of a version of an image: 100 files of 100 KB, of which every fourth is of a version alone.
func versionTar(t *testing.T, n byte) []byte {
	t.Helper()
	p, err := treetest.Tar(100, func(i int) (string, []byte) {
		seed := [32]byte{byte(i)}
		if i%4 == 1 {
			seed[1] = n
		}
		text, r := make([]byte, 100_000), rand.NewChaCha8(seed)
		_, _ = r.Read(text)
		for k := range text[:50_000] {
			text[k] = "etaoin shrdlucm\n"[text[k]&15]
		}
		return fmt.Sprintf("usr/lib/file%04d", i), text
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pushLayer puts an image of one gzip layer into the repository app.
func (r *registry) pushLayer(t *testing.T, tag string, layer []byte) ocispec.Descriptor {
	t.Helper()
	push := func(mediaType string, p []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
		r.PushBlob(t, "app", d.Digest, d.Size, bytes.NewReader(p))
		return d
	}
	d := push(ocispec.MediaTypeImageLayerGzip, layer)
	p, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: push(ocispec.MediaTypeImageConfig, []byte(`{"architecture":"none"}`)), Layers: []ocispec.Descriptor{d},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.pushBytes(t, "app", tag, ocispec.MediaTypeImageManifest, p)
	return d
}

// TestKilledWhileItMakesALayer: a site is killed while what has changed in a layer comes. When it is started again nothing is left of that, and
// the layer is made, to its last bit. One that GNU gzip has packed comes as a whole, and the site says why.
func TestKilledWhileItMakesALayer(t *testing.T) {
	t.Parallel()
	r := startRegistry(t)
	byGo := func(tar []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(tar); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	cmd := exec.CommandContext(t.Context(), "gzip", "-n")
	cmd.Stdin = bytes.NewReader(versionTar(t, 3))
	byGNU, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	r.pushLayer(t, "v1", byGo(versionTar(t, 1)))
	v2, v3 := r.pushLayer(t, "v2", byGo(versionTar(t, 2))), r.pushLayer(t, "v3", byGNU)
	hub := startNode(t, r.URL)
	w := startWire(t, hub.url)
	site := startNode(t, "http://127.0.0.1:1", "--parent", w.url, "--wan", "bytes")
	for _, tag := range []string{"v2", "v3"} {
		hub.pullImage(t, "app", tag, "")
	}
	site.pullImage(t, "app", "v1", "")

	site.ask(t, "app/manifests/v2", "")
	w.rate.Store(256 << 10)
	w.sent.Store(0)
	go func() {
		if resp, err := http.Get(site.url + "/v2/app/blobs/" + string(v2.Digest)); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	programs.Eventually(t, "some of what has changed has come", func() bool { return w.sent.Load() > v2.Size/20 })
	if err := site.End(syscall.SIGKILL); err == nil {
		t.Error("the node was not killed")
	}
	w.rate.Store(0)
	w.sent.Store(0)
	site.restart(t)
	if left, err := os.ReadDir(filepath.Join(site.dir, "rebuild")); err != nil || len(left) > 0 {
		t.Errorf("the killed one has left %v, %v", left, err)
	}
	site.pullImage(t, "app", "v2", "")
	if sent := w.sent.Load(); sent > v2.Size/3 {
		t.Errorf("%d bytes came of a layer of %d", sent, v2.Size)
	}
	site.pullImage(t, "app", "v3", "")
	if sent := w.sent.Load(); sent < v3.Size {
		t.Errorf("%d bytes came for a layer of %d by GNU gzip", sent, v3.Size)
	}
	var status struct {
		WAN struct {
			Layers     int
			LastFailed struct{ Reason string }
		}
	}
	resp, err := http.Get(site.admin + "/api/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	if status.WAN.Layers != 1 || !strings.Contains(status.WAN.LastFailed.Reason, "GNU gzip") {
		t.Errorf("the site says %+v", status.WAN)
	}
}
