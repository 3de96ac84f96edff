package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/programs"
)

// builder builds a Dockerfile with a file, "added", into a layout, with more options of BuildKit's exporter.
type builder func(t *testing.T, dockerfile, added, options string) (layout string)

// startBuildKit starts a buildkitd with an empty store.
func startBuildKit(t *testing.T, config string) builder {
	t.Helper()
	programs.NeedRoot(t)
	daemon, client := programs.Tool(t, "buildkitd"), programs.Tool(t, "buildctl")
	programs.OfSystem(t, "runc")
	dir := programs.ShortDir(t)
	socket := "unix://" + dir + "/sock"
	programs.Start(t, daemon, "--config", config, "--root", dir+"/root", "--addr", socket, "--containerd-worker=false",
		"--oci-worker-net=host", "--oci-worker-snapshotter=overlayfs")
	programs.Eventually(t, "buildkitd answers", func() bool {
		_, err := programs.TryRun(t, nil, client, "--addr", socket, "debug", "workers")
		return err == nil
	})
	return func(t *testing.T, dockerfile, added, options string) string {
		t.Helper()
		source, to := t.TempDir(), filepath.Join(t.TempDir(), "built")
		programs.Write(t, source, "Dockerfile", dockerfile)
		programs.Write(t, source, "added", added)
		programs.Run(t, nil, client, "--addr", socket, "build", "--progress=plain", "--frontend=dockerfile.v0",
			"--local=context="+source, "--local=dockerfile="+source, "--output=type=oci,tar=false,dest="+to+options)
		return to
	}
}

// from builds from an image that has Go.
func (b builder) from(t *testing.T, image string) (layout string) {
	t.Helper()
	return b(t, "FROM "+image+"\nCOPY added /added\nRUN [\"/usr/local/go/bin/go\", \"version\"]\n", "by the build\n", "")
}

// checkBuilt holds a layout to be of an image that was built from the image.
func checkBuilt(t *testing.T, layout string) {
	t.Helper()
	blob := func(d digest.Digest) string { return filepath.Join(layout, "blobs/sha256", d.Encoded()) }
	var index ocispec.Index
	var manifest ocispec.Manifest
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	readJSON(t, blob(index.Manifests[0].Digest), &manifest)
	if len(manifest.Layers) <= len(image.Layers) {
		t.Fatalf("it has %d layers, from an image of %d", len(manifest.Layers), len(image.Layers))
	}
	for i, l := range image.Layers {
		if got := manifest.Layers[i].Digest; got != l.Digest {
			t.Errorf("its layer %d is %s, want %s", i, got, l.Digest)
		}
		checkFile(t, blob(l.Digest), l.Digest)
	}
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	p, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(p, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestConfiguredBuildKit builds from a registry by its own name, and from Docker Hub, which
// the node alone has. When that is taken back, BuildKit goes to the registry itself.
func TestConfiguredBuildKit(t *testing.T) {
	r := startRegistry(t)
	f := startFront(t, r)
	n := startNode(t, r.URL, "--upstream", f.address+"="+f.url)
	const file = "etc/buildkit/buildkitd.toml"
	files := map[string]string{file: "# by hand\n[log]\n  format = \"text\"\n\n[registry.\"docker.io\"]\n  mirrors = [\"127.0.0.1:1\"] # away\n\n" +
		"[registry.\"" + f.address + "\"]\n  http = true\n"}
	args := []string{"--registry", f.address, "--registry", "docker.io"}
	root := configuredFor(t, n, "buildkit", files, args, func(t *testing.T, root string) {
		build := startBuildKit(t, filepath.Join(root, file))
		checkBuilt(t, build.from(t, f.address+"/go:v1"))
		if f.seen("buildkit") > 0 || f.seen("granary") == 0 {
			t.Errorf("at the registry came %v", f.who)
		}
		checkBuilt(t, build.from(t, "go:multi"))
	})
	before := n.metric(t, "granary_bytes_total")
	checkBuilt(t, startBuildKit(t, filepath.Join(root, file)).from(t, f.address+"/go:v1"))
	if f.seen("buildkit") == 0 || n.metric(t, "granary_bytes_total") != before {
		t.Errorf("after the undo there came %v, and %d bytes through the node", f.who, n.metric(t, "granary_bytes_total")-before)
	}
}
