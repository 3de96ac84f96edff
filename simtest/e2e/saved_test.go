package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layerOf is a layer with one file, as it is and compressed.
func layerOf(t *testing.T, name, content string) (plain, packed []byte) {
	t.Helper()
	var p, z bytes.Buffer
	w := tar.NewWriter(&p)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, content)
	_ = w.Close()
	g := gzip.NewWriter(&z)
	_, _ = g.Write(p.Bytes())
	_ = g.Close()
	return p.Bytes(), z.Bytes()
}

// smallLayout is an image in a layout, under the tag v1, of three layers, the last of them the
// first one again.
func smallLayout(t *testing.T) (dir string, config []byte, diffIDs []digest.Digest) {
	t.Helper()
	dir = t.TempDir()
	blob := func(mediaType string, p []byte) ocispec.Descriptor {
		d := digest.FromBytes(p)
		write(t, dir, "blobs/sha256/"+d.Encoded(), string(p))
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
	}
	encode := func(v any) []byte {
		p, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	var layers []ocispec.Descriptor
	for _, name := range []string{"first", "second", "first"} {
		plain, packed := layerOf(t, name, strings.Repeat(name, 300_000))
		layers, diffIDs = append(layers, blob(ocispec.MediaTypeImageLayerGzip, packed)), append(diffIDs, digest.FromBytes(plain))
	}
	config = encode(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}})
	manifest := blob(ocispec.MediaTypeImageManifest, encode(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: blob(ocispec.MediaTypeImageConfig, config), Layers: layers,
	}))
	manifest.Annotations = map[string]string{ocispec.AnnotationRefName: "v1"}
	write(t, dir, "index.json", string(encode(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{manifest}})))
	write(t, dir, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	return dir, config, diffIDs
}

const savedName = upstreamName + "/team/saved:v1"

// imports imports an archive, and pulls what it is from a node without a registry: what comes is
// the config that was saved, and layers that are what it says.
func imports(t *testing.T, at string, config []byte, diffIDs []digest.Digest) {
	t.Helper()
	n := startNode(t, "http://127.0.0.1:1")
	run(t, nil, granaryBinary, "import", at, "--node", n.admin)
	out := t.TempDir()
	run(t, nil, program(t, "skopeo"), "--registries-conf", mirrorConf(t, n), "copy", "--preserve-digests", "docker://"+savedName, "oci:"+out+":v1")
	var index ocispec.Index
	var m ocispec.Manifest
	read := func(name string, into any) {
		t.Helper()
		p, err := os.ReadFile(filepath.Join(out, name))
		if err == nil {
			err = json.Unmarshal(p, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }
	read("index.json", &index)
	read(blob(index.Manifests[0].Digest), &m)
	if m.Config.Digest != digest.FromBytes(config) || len(m.Layers) != len(diffIDs) {
		t.Fatalf("the manifest is %+v", m)
	}
	for i, l := range m.Layers {
		p, err := os.ReadFile(filepath.Join(out, blob(l.Digest)))
		if err != nil {
			t.Fatal(err)
		}
		if l.MediaType == ocispec.MediaTypeImageLayerGzip {
			z, err := gzip.NewReader(bytes.NewReader(p))
			if err != nil {
				t.Fatal(err)
			}
			if p, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		if got := digest.FromBytes(p); got != diffIDs[i] {
			t.Errorf("layer %d, %s, is %s, and %s by the config", i, l.MediaType, got, diffIDs[i])
		}
	}
}

// podmanStore is a podman with an empty store.
func podmanStore(t *testing.T) (podman string, args []string) {
	dir := t.TempDir()
	return program(t, "podman"), []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
}

// TestSavedImages are imported as programs save them: podman, skopeo, crane, and Docker before 25.
func TestSavedImages(t *testing.T) {
	dir, config, diffIDs := smallLayout(t)
	id := digest.FromBytes(config).Encoded()
	file := func(t *testing.T) string { return filepath.Join(t.TempDir(), "saved.tar") }
	t.Run("skopeo", func(t *testing.T) {
		out := file(t)
		run(t, nil, program(t, "skopeo"), "copy", "oci:"+dir+":v1", "docker-archive:"+out+":"+savedName)
		imports(t, "docker-archive:"+out, config, diffIDs)
	})
	t.Run("podman", func(t *testing.T) {
		needRoot(t)
		out := file(t)
		podman, args := podmanStore(t)
		run(t, nil, podman, append(args, "pull", "oci:"+dir+":v1")...)
		run(t, nil, podman, append(args, "tag", id, savedName)...)
		run(t, nil, podman, append(args, "save", "-o", out, savedName)...)
		imports(t, "docker-archive:"+out, config, diffIDs)
		more := file(t)
		run(t, nil, podman, append(args, "tag", id, "docker.io/library/other:v2")...)
		run(t, nil, podman, append(args, "save", "-m", "-o", more, savedName, "docker.io/library/other:v2")...)
		imports(t, "oci-archive:"+more, config, diffIDs)
		// As it is, in the place of a registry, for podman to pull.
		n := startNode(t, "oci-archive:"+out)
		puller, args := podmanStore(t)
		env := []string{"CONTAINERS_REGISTRIES_CONF=" + mirrorConf(t, n)}
		run(t, env, puller, append(args, "pull", savedName)...)
		if got := strings.TrimSpace(run(t, env, puller, append(args, "image", "inspect", "--format", "{{.Id}}", savedName)...)); got != id {
			t.Errorf("podman has %s, and %s was saved", got, id)
		}
	})
	t.Run("crane", func(t *testing.T) {
		crane, skopeo := tool(t, "crane"), program(t, "skopeo")
		r := &registry{dir: t.TempDir()}
		r.serve(t, "")
		run(t, nil, skopeo, "copy", "--dest-tls-verify=false", "oci:"+dir+":v1", "docker://"+r.address+"/team/saved:v1")
		for _, format := range []string{"tarball", "legacy"} {
			out := file(t)
			run(t, nil, crane, "pull", "--format", format, r.address+"/team/saved:v1", out)
			// It is called as where it came from, and that is another host.
			retagged := bytes.ReplaceAll(readAll(t, out), []byte(r.address+"/team"), []byte(fmt.Sprintf("%-*s", len(r.address)+5, upstreamName)))
			_ = retagged
			imports(t, "docker-archive:"+out, config, diffIDs)
		}
	})
	t.Run("docker", func(t *testing.T) {
		needRoot(t)
		out := file(t)
		docker := startDocker(t)
		run(t, nil, program(t, "skopeo"), "copy", "oci:"+dir+":v1", "docker-archive:"+out+":"+savedName)
		docker("load", "-i", out)
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
		docker("save", "-o", out, savedName)
		imports(t, "docker-archive:"+out, config, diffIDs)
	})
}
