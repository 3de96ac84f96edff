package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/cmd/granary/demo"
	"github.com/granary-oci/granary/simtest/programs"
)

// upstreamName is what the registry is called at the node; it resolves nowhere,
// so a client that gets an image under that name got it from the node.
const upstreamName = "registry.test"

var (
	granaryBinary string
	image         *demo.Image
	index         ocispec.Descriptor // names the image for two platforms
	indexBytes    []byte

	// The image without its zstd layer, for Docker 20.10, which knows only gzip.
	oldManifest, oldConfig []byte
)

// TestMain builds the node and the image once.
func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("e2e: skipped, it takes minutes")
		return
	}
	dir, err := os.MkdirTemp("", "granary-e2e-")
	if err == nil {
		err = prepare(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func prepare(dir string) (err error) {
	if err := programs.Build(dir, "cmd/granary"); err != nil {
		return err
	}
	granaryBinary = filepath.Join(dir, "granary")
	goroot := filepath.Join(dir, "go")
	if err := copySmall(goroot); err != nil {
		return err
	}
	if image, err = demo.Build(filepath.Join(dir, "image"), goroot); err != nil {
		return err
	}
	stocked.dir = filepath.Join(dir, "registry")
	here, other := image.Manifest, image.Manifest
	here.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	other.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	indexBytes, err = json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{other, here},
	})
	index = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(indexBytes), Size: int64(len(indexBytes))}
	return errors.Join(err, prepareOld())
}

// copySmall copies as much of the Go installation as makes an image of several layers, one of
// which has many chunks: more would prove nothing more.
func copySmall(to string) error {
	from, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	root := strings.TrimSpace(string(from))
	if err := os.CopyFS(filepath.Join(to, "src"), os.DirFS(filepath.Join(root, "src/encoding"))); err != nil {
		return err
	}
	for _, name := range []string{"VERSION", "LICENSE", "bin/go", "pkg/tool/linux_" + runtime.GOARCH + "/link"} {
		p, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), p, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prepareOld makes the image that Docker 20.10 can unpack.
func prepareOld() error {
	var config ocispec.Image
	p, err := os.ReadFile(image.Path(image.Config.Digest))
	if err == nil {
		err = json.Unmarshal(p, &config)
	}
	if err != nil {
		return err
	}
	var layers []ocispec.Descriptor
	var diffIDs []digest.Digest
	for i, l := range image.Layers {
		if l.MediaType != ocispec.MediaTypeImageLayerZstd {
			layers, diffIDs = append(layers, l), append(diffIDs, config.RootFS.DiffIDs[i])
		}
	}
	config.RootFS.DiffIDs = diffIDs
	if oldConfig, err = json.Marshal(config); err != nil {
		return err
	}
	oldManifest, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(oldConfig), Size: int64(len(oldConfig))},
		Layers:    layers,
	})
	return err
}

// registry is a docker-registry that holds the image, as go and library/go, by
// the tags v1, old and, as an index, multi.
type registry struct {
	*programs.Registry
	dir string
}

// serve starts a registry on what is in its directory. auth is the section of
// its configuration that says who may read, or "".
func (r *registry) serve(t *testing.T, auth string) {
	t.Helper()
	r.Registry = programs.Distribution(t, programs.OfSystem(t, "docker-registry"), r.dir, auth)
}

// stocked is what a registry has in its directory that holds the image: it is pushed once.
var stocked struct {
	dir  string
	once sync.Once
}

func startRegistry(t *testing.T) *registry {
	t.Helper()
	stocked.once.Do(func() {
		r := &registry{dir: stocked.dir}
		r.serve(t, "")
		r.stock(t)
		_ = r.End(syscall.SIGTERM)
	})
	r := &registry{dir: t.TempDir()}
	programs.Run(t, nil, "cp", "-al", filepath.Join(stocked.dir, "data"), r.dir)
	r.serve(t, "")
	return r
}

func (r *registry) stock(t *testing.T) {
	t.Helper()
	manifest, err := os.ReadFile(image.Path(image.Manifest.Digest))
	if err != nil {
		t.Fatal(err)
	}
	old := programs.Write(t, r.dir, "old-config", string(oldConfig))
	for _, repository := range []string{"go", "library/go"} {
		for _, d := range append(image.Layers, image.Config) {
			r.pushFile(t, repository, d.Digest, image.Path(d.Digest))
		}
		r.pushFile(t, repository, digest.FromBytes(oldConfig), old)
		r.pushBytes(t, repository, "old", image.Manifest.MediaType, oldManifest)
		r.pushBytes(t, repository, "v1", image.Manifest.MediaType, manifest)
		r.pushBytes(t, repository, "multi", index.MediaType, indexBytes)
	}
}

func (r *registry) pushFile(t *testing.T, repository string, d digest.Digest, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r.PushBlob(t, repository, d, info.Size(), f)
}

func (r *registry) pushBytes(t *testing.T, repository, tag, mediaType string, p []byte) {
	t.Helper()
	r.PushManifest(t, repository, tag, mediaType, int64(len(p)), bytes.NewReader(p))
}

// node is a granary that serves.
type node struct {
	*programs.Process
	address string // of the registry face
	url     string
	admin   string
	dir     string
	args    []string
}

// startNode starts a node before upstream, with an empty store.
func startNode(t *testing.T, upstream string, more ...string) *node {
	t.Helper()
	n := &node{address: programs.FreeAddress(t), dir: filepath.Join(t.TempDir(), "node")}
	n.url, n.admin = "http://"+n.address, "http://"+programs.FreeAddress(t)
	n.args = []string{
		"serve", "--data-dir", n.dir, "--cache-size", "4GiB", "--listen", n.address, "--admin", strings.TrimPrefix(n.admin, "http://"),
		"--upstream", upstreamName + "=" + upstream, "--upstream", "docker.io=" + upstream, "--default-upstream", upstreamName,
	}
	n.args = append(n.args, more...)
	n.restart(t)
	return n
}

// restart starts the node again, on the same store, after it has ended.
func (n *node) restart(t *testing.T) {
	t.Helper()
	n.Process = programs.Start(t, granaryBinary, n.args...)
	programs.Eventually(t, "the node is ready", func() bool { return programs.Answers(n.admin + "/readyz") })
}

// metric sums the values of a metric whose labels contain all of match.
func (n *node) metric(t *testing.T, name string, match ...string) int64 {
	t.Helper()
	resp, err := http.Get(n.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
next:
	for line := range strings.Lines(string(text)) {
		labels, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || labels != name && !strings.HasPrefix(labels, name+"{") {
			continue
		}
		for _, m := range match {
			if !strings.Contains(labels, m) {
				continue next
			}
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return int64(sum)
}

// checkBlobs compares blobs that a client has stored, in files named by their
// digest, with those of the image.
func checkBlobs(t *testing.T, path func(digest.Digest) string) {
	t.Helper()
	for _, d := range append(image.Layers, image.Config, image.Manifest) {
		checkFile(t, path(d.Digest), d.Digest)
	}
}

func checkFile(t *testing.T, path string, want digest.Digest) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Error(err)
	}
	if got := digest.NewDigest(digest.SHA256, h); got != want {
		t.Errorf("%s has digest %s, want %s", path, got, want)
	}
}
