package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/fuse/mounter"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/toc"
)

// layeredNode answers as a node does that has an image of layers, each of some entries.
type layeredNode struct {
	*httptest.Server
	tables   map[string][]byte // by layer
	manifest []byte
	layers   []digest.Digest
	asked    atomic.Int32 // for tables
	refuses  atomic.Bool
}

func newLayeredNode(t *testing.T, layers ...[]toc.Entry) *layeredNode {
	t.Helper()
	n := &layeredNode{tables: make(map[string][]byte)}
	var m ocispec.Manifest
	for i, entries := range layers {
		var b toc.Builder
		for _, e := range entries {
			if err := b.Add(e); err != nil {
				t.Fatal(err)
			}
		}
		table, err := b.Done()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := toc.EncodeJSON(&out, table); err != nil {
			t.Fatal(err)
		}
		d := digest.FromString(string(rune('a' + i)))
		n.tables[string(d)], n.layers = out.Bytes(), append(n.layers, d)
		m.Layers = append(m.Layers, ocispec.Descriptor{Digest: d, Size: 1 << 20})
	}
	n.manifest, _ = json.Marshal(m)
	n.Server = httptest.NewServer(n)
	t.Cleanup(n.Close)
	return n
}

func (n *layeredNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	switch {
	case n.refuses.Load():
		w.WriteHeader(http.StatusForbidden)
	case strings.Contains(r.URL.Path, "/manifests/") && what == string(digest.FromBytes(n.manifest)):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		_, _ = w.Write(n.manifest)
	case strings.Contains(r.URL.Path, "/_granary/toc/") && n.tables[what] != nil:
		n.asked.Add(1)
		w.Header().Set(proxy.WhiteoutsHeader, "oci")
		_, _ = w.Write(n.tables[what])
	default:
		http.NotFound(w, r)
	}
}

func (n *layeredNode) layer(i int) mounter.Layer {
	return mounter.Layer{Image: "registry.test/app:v1", Manifest: digest.FromBytes(n.manifest), Digest: n.layers[i]}
}

func openLayers(n *layeredNode) *layerMounts {
	m := &layerMounts{log: slog.New(slog.DiscardHandler)}
	m.attached(mounter.Node{URL: n.URL})
	return m
}

func fileAt(name string) toc.Entry { return toc.Entry{Name: name, Type: toc.Regular} }

func TestLayersAreOpenedWithThoseBelow(t *testing.T) {
	n := newLayeredNode(t, []toc.Entry{{Name: "dir", Type: toc.Directory, Mode: 0o700}, fileAt("dir/f")}, []toc.Entry{fileAt("dir/g")})
	m := openLayers(n)
	for i := range n.layers {
		l := n.layer(i)
		l.Coming = n.layers[i+1:]
		if _, err := m.open(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.asked.Load(); got != 2 {
		t.Errorf("tables were asked for %d times", got)
	}
	img, err := m.image(t.Context(), n.layer(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.read(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	tree, err := img.lower()
	if err != nil {
		t.Fatal(err)
	}
	if dir, _ := tree.Lookup("dir"); dir.Mode != 0o700 {
		t.Errorf("a directory that only the layer below has an entry for has mode %o", dir.Mode)
	}
	if _, ok := tree.Lookup("dir/f"); ok {
		t.Error("a layer has what is in the one below")
	}
}

func TestLayersThatCannotBeOpened(t *testing.T) {
	n := newLayeredNode(t, []toc.Entry{fileAt("f")}, []toc.Entry{fileAt(".wh..wh..opq"), fileAt("g")})
	m := openLayers(n)
	unnamed := n.layer(0)
	unnamed.Digest = digest.FromString("another")
	elsewhere := n.layer(0)
	elsewhere.Manifest = digest.FromString("another")
	for want, l := range map[string]mounter.Layer{
		"it has no layer":           unnamed,
		"404":                       elsewhere,
		"removes all that is below": n.layer(1),
		"invalid checksum":          {Image: "registry.test/app@sha256:x", Manifest: n.layer(0).Manifest, Digest: n.layers[0]},
	} {
		if _, err := m.open(t.Context(), l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
	n.refuses.Store(true)
	fresh := openLayers(n)
	if _, err := fresh.open(t.Context(), n.layer(0)); err == nil {
		t.Error("what the node refuses is mounted")
	}
	if _, err := (&layerMounts{}).open(t.Context(), n.layer(0)); err == nil || !strings.Contains(err.Error(), "no node has attached") {
		t.Errorf("without a node: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.refuses.Store(false)
	if _, err := fresh.open(ctx, n.layer(0)); !errors.Is(err, context.Canceled) {
		t.Errorf("for somebody who has left: %v", err)
	}
}

// TestImagesShareTheirLowestLayers in memory, though each is asked for.
func TestImagesShareTheirLowestLayers(t *testing.T) {
	base := []toc.Entry{fileAt("f")}
	n := newLayeredNode(t, base, []toc.Entry{fileAt("g")})
	m := openLayers(n)
	first, err := m.image(t.Context(), n.layer(1))
	if err != nil {
		t.Fatal(err)
	}
	second := *first
	second.want.Name = "library/other"
	if err := errors.Join(m.read(t.Context(), first), m.read(t.Context(), &second)); err != nil {
		t.Fatal(err)
	}
	if n.asked.Load() != 4 || first.tables[0] != second.tables[0] || first.tables[0] == first.tables[1] {
		t.Errorf("asked for %d tables; %p %p, %p %p", n.asked.Load(), first.tables[0], second.tables[0], first.tables[1], second.tables[1])
	}
}

func TestAMountersLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	line := append(bytes.Repeat([]byte("x"), 1<<20-1), '\n')
	for range 3 * maxLog >> 20 {
		if _, err := log.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + ".old"} {
		if info, err := os.Stat(name); err != nil || info.Size() > maxLog || info.Size() == 0 {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 2 {
		t.Errorf("%d files, %v", len(files), err)
	}
}
