package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/cmd/granary/node"
)

// gate is a node's admin listener, as an import sees it that may be interrupted.
type gate struct {
	*httptest.Server
	limit atomic.Int64 // bytes of a blob that are let through
	sent  atomic.Int64 // bytes of blobs that have come
}

func newGate(t *testing.T, n *node.Node) *gate {
	to, err := url.Parse(n.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	g := new(gate)
	g.limit.Store(1 << 40)
	p := httputil.NewSingleHostReverseProxy(to)
	p.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) } // the command is gone
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			r.Body = &gated{r.Body, g, r.Context(), 0}
		}
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

type gated struct {
	io.ReadCloser
	g   *gate
	ctx context.Context
	n   int64
}

func (b *gated) Read(p []byte) (int, error) {
	left := b.g.limit.Load() - b.n
	if left <= 0 {
		_, _ = io.Copy(io.Discard, b.ReadCloser) // a server looks whether a client is there once its request has come
		<-b.ctx.Done()
		return 0, b.ctx.Err()
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), left)])
	b.n += int64(n)
	b.g.sent.Add(int64(n))
	return n, err
}

// begun returns what the node says that it has of a blob.
func begun(t *testing.T, n *node.Node, desc ocispec.Descriptor) int64 {
	t.Helper()
	i := &imported{to: nodeFlag{Node: n.AdminURL()}}
	i.repository.Host, i.repository.Name = "registry.test", "app"
	s, err := i.status(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	return s.Offset
}

// TestAnImportGoesOnWithinABlob: what the node has when an import is interrupted is not sent again.
func TestAnImportGoesOnWithinABlob(t *testing.T) {
	for how, start := range commands {
		t.Run(how, func(t *testing.T) {
			l, dir := newLibrary(t), t.TempDir()
			image, layer := l.addLarge("v1")
			l.exported(t, "registry.test/app:v1", "oci:"+dir)
			n := alone(t, t.TempDir())
			g := newGate(t, n)
			g.limit.Store(4*chunk.Size + 10_000)
			args := []string{"import", "oci:" + dir, "--node", g.URL}
			interrupt := start(t, args...)
			until(t, "a part of the layer is there", func() bool { return begun(t, n, layer) == 4*chunk.Size })
			interrupt()
			if resp, _ := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/manifests/"+string(image.Digest)); resp.StatusCode == 200 {
				t.Error("the image is served before it is there")
			}
			g.limit.Store(1 << 40)
			g.sent.Store(0)
			if status, _, errs := granary(t, args...); status != 0 {
				t.Fatalf("it does not go on: %s", errs)
			}
			if again, most := g.sent.Load(), layer.Size-4*chunk.Size+10_000; again > most {
				t.Errorf("%d bytes were sent again, of which at most %d were missing", again, most)
			}
			if resp, p := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/blobs/"+string(layer.Digest)); resp.StatusCode != 200 || string(p) != large() {
				t.Errorf("the layer is served as %s, %d bytes", resp.Status, len(p))
			}
		})
	}
}

// put gives a node what follows an offset of a blob, in a body that does not say its size.
func put(t *testing.T, n *node.Node, desc ocispec.Descriptor, offset, content string) (status int, text string) {
	t.Helper()
	at := fmt.Sprintf("%s/api/v1/import/%s?repository=registry.test/app&size=%d&offset=%s", n.AdminURL(), desc.Digest, desc.Size, offset)
	return request(t, http.MethodPut, at, io.MultiReader(strings.NewReader(content)))
}

// TestAnImportAfterWrongBytes is made once more from the beginning.
func TestAnImportAfterWrongBytes(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	_, layer := l.addLarge("v1")
	l.exported(t, "registry.test/app:v1", "oci:"+dir)
	wrong := []byte(large())
	wrong[chunk.Size+5]++
	n := alone(t, t.TempDir())
	if status, text := put(t, n, layer, "0", string(wrong[:3*chunk.Size+9])); status != 400 || !strings.Contains(text, fmt.Sprintf("%s: it ends after %d of %d bytes", layer.Digest, 3*chunk.Size+9, layer.Size)) {
		t.Errorf("a part: %d %s", status, text)
	}
	until(t, "a part of the layer is there", func() bool { return begun(t, n, layer) == 3*chunk.Size })
	g := newGate(t, n)
	if status, _, errs := granary(t, "import", "oci:"+dir, "--node", g.URL); status != 0 {
		t.Fatal(errs)
	}
	if want := 2*layer.Size - 3*chunk.Size; g.sent.Load() < want || g.sent.Load() > want+10_000 {
		t.Errorf("%d bytes were sent, want about %d", g.sent.Load(), want)
	}
	if resp, p := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/blobs/"+string(layer.Digest)); resp.StatusCode != 200 || string(p) != large() {
		t.Errorf("the layer is served as %s, %d bytes", resp.Status, len(p))
	}
}

// TestWhereAnImportGoesOn is where the node has all that comes before, and nowhere else.
func TestWhereAnImportGoesOn(t *testing.T) {
	l := newLibrary(t)
	_, layer := l.addLarge("v1")
	n := alone(t, t.TempDir())
	size := fmt.Sprint(layer.Size)
	for offset, want := range map[string]string{"-1": "400 ", "x": "400 import: " + string(layer.Digest) + ": offset: ", "5": "400 ", "1048576": "409 ", size: "409 ", "99999999999": "400 "} {
		rest := ""
		if at, err := strconv.ParseInt(offset, 10, 64); err == nil && at >= 0 && at < layer.Size {
			rest = large()[at:]
		}
		status, text := put(t, n, layer, offset, rest)
		if !strings.HasPrefix(fmt.Sprint(status, " ", text), want) || !strings.Contains(text, string(layer.Digest)) || n.Status().Store.Blobs != 0 {
			t.Errorf("from %s on, of which nothing is there: %d %s", offset, status, text)
		}
	}
	put(t, n, layer, "0", large()[:10*chunk.Size])
	until(t, "all but the end is there", func() bool { return begun(t, n, layer) == 10*chunk.Size })
	if status, text := put(t, n, layer, fmt.Sprint(10*chunk.Size), large()[10*chunk.Size:]); status != 200 {
		t.Errorf("the end: %d %s", status, text)
	}
	if status, text := put(t, n, layer, size, ""); status != 200 {
		t.Errorf("nothing more: %d %s", status, text)
	}
}
