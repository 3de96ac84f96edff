package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/cmd/granary/node"
)

// savedImage writes an image as docker save does before Docker 25. The last layer is the first one
// again.
func savedImage(t *testing.T, file, tag string, layers ...string) (config string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(h tar.Header, content string) {
		h.Size, h.Mode = int64(len(content)), 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	var diffIDs []digest.Digest
	for i, layer := range layers {
		name := fmt.Sprintf("%064x/layer.tar", i)
		names, diffIDs = append(names, name), append(diffIDs, digest.FromString(layer))
		add(tar.Header{Typeflag: tar.TypeReg, Name: name}, layer)
	}
	again := strings.Repeat("f", 64) + "/layer.tar"
	names, diffIDs = append(names, again), append(diffIDs, diffIDs[0])
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: again, Linkname: "../" + names[0]}, "")
	ids, err := json.Marshal(diffIDs)
	if err != nil {
		t.Fatal(err)
	}
	config = `{"os":"linux", "architecture":"amd64","rootfs":{"type":"layers","diff_ids":` + string(ids) + `}}`
	name := digest.FromString(config).Encoded() + ".json"
	add(tar.Header{Typeflag: tar.TypeReg, Name: name}, config)
	manifest, err := json.Marshal([]any{map[string]any{"Config": name, "RepoTags": []string{tag}, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json"}, string(manifest))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return config
}

// TestSavedImages are imported, and served in the place of a registry, as what they are; and what
// is exported of them is the same.
func TestSavedImages(t *testing.T) {
	file := filepath.Join(t.TempDir(), "saved.tar")
	config := savedImage(t, file, "app:v1", "a small layer", large())
	pulled := make(map[string]digest.Digest)
	for name, serve := range map[string]func(t *testing.T) *node.Node{
		"imported": func(t *testing.T) *node.Node {
			n := testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"docker.io": nowhere}}})
			if status, out, errs := granary(t, "import", "docker-archive:"+file, "--node", n.AdminURL()); status != 0 || !strings.HasPrefix(out, "docker.io/library/app: 1 tags, 1 manifests, 3 blobs") {
				t.Fatalf("import: %d, %s%s", status, out, errs)
			}
			return n
		},
		"imported as an OCI archive": func(t *testing.T) *node.Node {
			n := testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"docker.io": nowhere}}})
			if status, _, errs := granary(t, "import", "oci-archive:"+file, "--node", n.AdminURL()); status != 0 {
				t.Fatalf("import: %d, %s", status, errs)
			}
			return n
		},
		"served": func(t *testing.T) *node.Node {
			return testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"docker.io": "docker-archive:" + file}}})
		},
		"served as an OCI archive": func(t *testing.T) *node.Node {
			return testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"docker.io": "oci-archive:" + file}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := serve(t)
			resp, p := ask(t, http.MethodGet, n.URLs()[0]+"/v2/library/app/manifests/v1?ns=docker.io")
			var m ocispec.Manifest
			if err := json.Unmarshal(p, &m); err != nil || resp.StatusCode != 200 || len(m.Layers) != 3 {
				t.Fatalf("%s %s", resp.Status, p)
			}
			pulled[name] = digest.FromBytes(p)
			dir := pullFrom(t, n, "docker.io/library/app:v1")
			for i, want := range []string{config, "a small layer", large(), "a small layer"} {
				desc := append([]ocispec.Descriptor{m.Config}, m.Layers...)[i]
				if p := readFile(t, layoutFile(dir, desc.Digest)); string(p) != want || desc.Digest != digest.FromString(want) {
					t.Errorf("%+v has %d other bytes", desc, len(p))
				}
				if i > 0 && desc.MediaType != ocispec.MediaTypeImageLayer {
					t.Errorf("a layer is %s", desc.MediaType)
				}
			}
		})
	}
	for name, d := range pulled {
		if d != pulled["imported"] {
			t.Errorf("%s: the manifest is %s, and imported %s", name, d, pulled["imported"])
		}
	}
}

// TestWrongBytesOfASavedImage: the error names the layer as the archive does, and as its config.
func TestWrongBytesOfASavedImage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "saved.tar")
	savedImage(t, file, "app:v1", large())
	alter(t, file, 5*chunk.Size)
	n := alone(t, t.TempDir())
	status, _, errs := granary(t, "import", "docker-archive:"+file, "--node", n.AdminURL())
	if want := file + "/" + strings.Repeat("0", 64) + "/layer.tar: "; status != 1 || !strings.Contains(errs, want) || !strings.Contains(errs, string(digest.FromString(large()))) || n.Status().Store.Blobs != 0 {
		t.Errorf("%d, %s; want %s", status, errs, want)
	}
}

// TestImportsOfRegistriesThatNobodyMayAsk: names of this machine, as podman gives what it builds, and
// addresses that the node does not connect to. What was imported is served, by all members, and nothing
// else is.
func TestImportsOfRegistriesThatNobodyMayAsk(t *testing.T) {
	nodes := clusterOf(t, 2, nowhere)
	for _, name := range []string{"localhost/app", "127.0.0.1:1/team/app"} {
		file := filepath.Join(t.TempDir(), "saved.tar")
		config := savedImage(t, file, name+":v1", "of "+name)
		if status, _, errs := granary(t, "import", "docker-archive:"+file, "--node", nodes[0].AdminURL()); status != 0 {
			t.Fatal(errs)
		}
		for i, n := range nodes {
			url := n.URLs()[0] + "/v2/" + name + "/"
			resp, p := ask(t, http.MethodGet, url+"manifests/v1")
			if resp.StatusCode != 200 {
				t.Fatalf("node %d, %s: %s %s", i, name, resp.Status, p)
			}
			for path, want := range map[string]string{
				"manifests/" + string(digest.FromBytes(p)):       string(p),
				"blobs/" + string(digest.FromString(config)):     config,
				"blobs/" + string(digest.FromString("of "+name)): "of " + name,
				"tags/list": `"v1"`,
			} {
				if resp, p := ask(t, http.MethodGet, url+path); resp.StatusCode != 200 || !strings.Contains(string(p), want) {
					t.Errorf("node %d, %s: %s %s", i, path, resp.Status, p)
				}
			}
			for _, other := range []string{url + "manifests/v2", url + "blobs/" + string(digest.FromString("other")), n.URLs()[0] + "/v2/localhost/other/manifests/v1"} {
				if resp, p := ask(t, http.MethodGet, other); resp.StatusCode != 403 {
					t.Errorf("node %d, %s: %s %s", i, other, resp.Status, p)
				}
			}
		}
	}
}
