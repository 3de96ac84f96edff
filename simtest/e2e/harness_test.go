package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
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
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/cmd/granary/demo"
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
	if err := lookAtSources(); err != nil {
		return err
	}
	granaryBinary = filepath.Join(dir, "granary")
	build := exec.Command("go", "build", "-o", granaryBinary, "github.com/granary-oci/granary/cmd/granary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	if image, err = demo.Build(filepath.Join(dir, "image"), strings.TrimSpace(string(goroot))); err != nil {
		return err
	}
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

// lookAtSources makes the results of these tests depend on the program, which is
// built by another process: go test remembers results for as long as the files
// that a test has looked at stay the same.
func lookAtSources() error {
	return filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		return err
	})
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

// missing skips a test for want of something, or fails it where all should be
// there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("MISSING: %s; CI has it", what)
	}
	t.Skipf("MISSING: %s; run simtest/e2e/install.sh as root, if that installs it", what)
}

// needRoot skips tests of runtimes that work for root only.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
}

// program finds a program of the system.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if dir == os.Getenv("GRANARY_TOOLS") {
			continue // containerd is there too, in another version
		}
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	missing(t, name)
	return ""
}

// tool finds a program that install.sh has built.
func tool(t *testing.T, name string) string {
	t.Helper()
	if dir := os.Getenv("GRANARY_TOOLS"); dir != "" {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	missing(t, name+" in $GRANARY_TOOLS")
	return ""
}

// process is a daemon that a test has started.
type process struct {
	cmd  *exec.Cmd
	log  string
	once sync.Once
	err  error
}

// start starts a daemon that ends with the test. If the test fails, the end of
// its log is shown.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), filepath.Base(name)+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &process{cmd: exec.Command(name, args...), log: log.Name()}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = p.end(syscall.SIGTERM)
		if t.Failed() {
			out, _ := os.ReadFile(p.log)
			t.Logf("end of the log of %s:\n%s", filepath.Base(name), out[max(0, len(out)-4000):])
		}
	})
	return p
}

// end ends a process with a signal and returns how it ended. One that does not
// end is killed after a while.
func (p *process) end(signal syscall.Signal) error {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(signal)
		late := time.AfterFunc(40*time.Second, func() { _ = p.cmd.Process.Kill() })
		p.err = p.cmd.Wait()
		late.Stop()
	})
	return p.err
}

// eventually waits, for a while, for something to become true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func answers(url string) bool {
	resp, err := http.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// registry is a docker-registry that holds the image, as go and library/go, by
// the tags v1, old and, as an index, multi.
type registry struct {
	*process
	address, url, dir string
}

// serve starts a registry on what is in its directory. auth is the section of
// its configuration that says who may read, or "".
func (r *registry) serve(t *testing.T, auth string) {
	t.Helper()
	r.address = freeAddress(t)
	r.url = "http://" + r.address
	config := write(t, r.dir, "config.yml", fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"+
		"storage:\n  filesystem: {rootdirectory: %s/data}\nhttp: {addr: %s}\n%s", r.dir, r.address, auth))
	r.process = start(t, program(t, "docker-registry"), "serve", config)
	eventually(t, "docker-registry answers", func() bool {
		resp, err := http.Get(r.url + "/v2/")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
}

func startRegistry(t *testing.T) *registry {
	t.Helper()
	dir := t.TempDir()
	r := &registry{dir: dir}
	r.serve(t, "")
	for _, repository := range []string{"go", "library/go"} {
		for _, d := range append(image.Layers, image.Config) {
			r.pushBlob(t, repository, d.Digest, image.Path(d.Digest))
		}
		r.pushBlob(t, repository, digest.FromBytes(oldConfig), write(t, dir, "old-config", string(oldConfig)))
		r.pushManifest(t, repository, "old", image.Manifest.MediaType, oldManifest)
		manifest, err := os.ReadFile(image.Path(image.Manifest.Digest))
		if err != nil {
			t.Fatal(err)
		}
		r.pushManifest(t, repository, "v1", image.Manifest.MediaType, manifest)
		r.pushManifest(t, repository, "multi", index.MediaType, indexBytes)
	}
	return r
}

func (r *registry) pushBlob(t *testing.T, repository string, d digest.Digest, file string) {
	t.Helper()
	resp, err := http.Post(r.url+"/v2/"+repository+"/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		t.Fatalf("push: %s: %v", resp.Status, err)
	}
	q := to.Query()
	q.Set("digest", string(d))
	to.RawQuery = q.Encode()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put(t, to.String(), "application/octet-stream", f)
}

func (r *registry) pushManifest(t *testing.T, repository, tag, mediaType string, p []byte) {
	t.Helper()
	put(t, r.url+"/v2/"+repository+"/manifests/"+tag, mediaType, bytes.NewReader(p))
}

func put(t *testing.T, url, mediaType string, body io.Reader) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if f, ok := body.(*os.File); ok {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = info.Size()
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		out, _ := io.ReadAll(resp.Body)
		t.Fatalf("push to %s: %s: %s", url, resp.Status, out)
	}
}

// node is a granary that serves.
type node struct {
	*process
	address string // of the registry face
	url     string
	admin   string
	dir     string
	args    []string
}

// startNode starts a node before upstream, with an empty store.
func startNode(t *testing.T, upstream string, more ...string) *node {
	t.Helper()
	n := &node{address: freeAddress(t), dir: filepath.Join(t.TempDir(), "node")}
	n.url, n.admin = "http://"+n.address, "http://"+freeAddress(t)
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
	n.process = start(t, granaryBinary, n.args...)
	eventually(t, "the node is ready", func() bool { return answers(n.admin + "/readyz") })
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

// run runs a command to its end and returns what it printed.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := tryRun(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func tryRun(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String() + stderr.String(), err
	}
	return stdout.String(), nil // crane, for one, shows a registry's warnings on stderr
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

// write makes a file of a configuration.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}
