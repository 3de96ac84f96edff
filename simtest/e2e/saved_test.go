package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/programs"
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
		programs.Write(t, dir, "blobs/sha256/"+d.Encoded(), string(p))
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
	programs.Write(t, dir, "index.json", string(encode(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{manifest}})))
	programs.Write(t, dir, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	return dir, config, diffIDs
}

const savedName = upstreamName + "/team/saved:v1"

// imports imports an archive, and pulls what it is by a name from a node without a registry: what
// comes is the config that was saved, and layers that are what it says.
func imports(t *testing.T, at, name string, config []byte, diffIDs []digest.Digest) {
	t.Helper()
	n := startNode(t, "http://127.0.0.1:1")
	programs.Run(t, nil, granaryBinary, "import", at, "--node", n.admin)
	out := t.TempDir()
	programs.Run(t, nil, granaryBinary, "pull", name, "--platform", "all", "-o", "oci:"+out, "--node", n.admin)
	blob := func(d digest.Digest) []byte { return readAll(t, filepath.Join(out, "blobs/sha256", d.Encoded())) }
	var index ocispec.Index
	var m ocispec.Manifest
	err := json.Unmarshal(readAll(t, filepath.Join(out, "index.json")), &index)
	if err == nil {
		err = json.Unmarshal(blob(index.Manifests[0].Digest), &m)
	}
	if err != nil || m.Config.Digest != digest.FromBytes(config) || len(m.Layers) != len(diffIDs) {
		t.Fatalf("the manifest is %+v, %v", m, err)
	}
	if !bytes.Equal(blob(m.Config.Digest), config) {
		t.Error("the config has other bytes")
	}
	for i, l := range m.Layers {
		p := blob(l.Digest)
		if l.MediaType == ocispec.MediaTypeImageLayerGzip {
			z, err := gzip.NewReader(bytes.NewReader(p))
			if err == nil {
				p, err = io.ReadAll(z)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := digest.FromBytes(p); got != diffIDs[i] {
			t.Errorf("layer %d, %s, is %s, and %s by the config", i, l.MediaType, got, diffIDs[i])
		}
	}
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// podmanStore is a podman with an empty store.
func podmanStore(t *testing.T) (podman string, args []string) {
	dir := t.TempDir()
	return programs.OfSystem(t, "podman"), []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
}

// TestSavedImages are imported as programs save them: podman, skopeo, crane, and Docker before 25.
func TestSavedImages(t *testing.T) {
	dir, config, diffIDs := smallLayout(t)
	id := digest.FromBytes(config).Encoded()
	file := func(t *testing.T) string { return filepath.Join(t.TempDir(), "saved.tar") }
	bySkopeo := func(t *testing.T) (path string) {
		path = file(t)
		programs.Run(t, nil, programs.OfSystem(t, "skopeo"), "copy", "oci:"+dir+":v1", "docker-archive:"+path+":"+savedName)
		return path
	}
	t.Run("skopeo", func(t *testing.T) {
		out := bySkopeo(t)
		imports(t, "docker-archive:"+out, savedName, config, diffIDs)
	})
	t.Run("podman", func(t *testing.T) {
		programs.NeedRoot(t)
		out := file(t)
		podman, args := podmanStore(t)
		programs.Run(t, nil, podman, append(args, "load", "-i", bySkopeo(t))...)
		programs.Run(t, nil, podman, append(args, "save", "-o", out, savedName)...)
		imports(t, "docker-archive:"+out, savedName, config, diffIDs)
		more := file(t)
		programs.Run(t, nil, podman, append(args, "tag", id, "docker.io/library/other:v2")...)
		programs.Run(t, nil, podman, append(args, "save", "-m", "-o", more, savedName, "docker.io/library/other:v2")...)
		imports(t, "oci-archive:"+more, "other:v2", config, diffIDs)
		// As it is, in the place of a registry, for podman to pull.
		n := startNode(t, "oci-archive:"+out)
		puller, args := podmanStore(t)
		env := []string{"CONTAINERS_REGISTRIES_CONF=" + mirrorConf(t, n)}
		programs.Run(t, env, puller, append(args, "pull", savedName)...)
		if got := strings.TrimSpace(programs.Run(t, env, puller, append(args, "image", "inspect", "--format", "{{.Id}}", savedName)...)); got != id {
			t.Errorf("podman has %s, and %s was saved", got, id)
		}
	})
	t.Run("crane", func(t *testing.T) {
		crane, skopeo := programs.Tool(t, "crane"), programs.OfSystem(t, "skopeo")
		r := programs.Distribution(t, programs.OfSystem(t, "docker-registry"), t.TempDir(), "")
		programs.Run(t, nil, skopeo, "copy", "--dest-tls-verify=false", "oci:"+dir+":v1", "docker://"+r.Address+"/team/saved:v1")
		for _, format := range []string{"tarball", "legacy"} {
			out := file(t)
			programs.Run(t, nil, crane, "pull", "--format", format, r.Address+"/team/saved:v1", out)
			imports(t, "docker-archive:"+out, r.Address+"/team/saved:v1", config, diffIDs)
		}
	})
	t.Run("docker", func(t *testing.T) {
		programs.NeedRoot(t)
		out, docker := file(t), startDocker(t)
		docker("load", "-i", bySkopeo(t))
		docker("save", "-o", out, savedName)
		imports(t, "docker-archive:"+out, savedName, config, diffIDs)
	})
}
