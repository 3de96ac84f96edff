//go:build large

// These take a quarter of an hour and 22 GiB of disk.

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/programs"
)

const (
	// aLittle is how much memory a command may take, and how much room it may take beside what it makes.
	aLittle = 256 << 20
	// nodeMemory is how much a node may: its caches and the windows of its readers.
	nodeMemory = 768 << 20
)

// serveLargeImage serves an image whose one layer is the large blob.
func serveLargeImage(t *testing.T) (url string) {
	t.Helper()
	config := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + string(largeDigest) + `"]}}`)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: largeDigest, Size: largeSize}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var content io.ReadSeeker
		switch filepath.Base(r.URL.Path) {
		case "v1", string(digest.FromBytes(manifest)):
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			content = strings.NewReader(string(manifest))
		case string(digest.FromBytes(config)):
			content = strings.NewReader(string(config))
		case string(largeDigest):
			w.Header().Set("Content-Type", "application/octet-stream")
			content = io.NewSectionReader(large{largeSize}, 0, largeSize)
		default:
			w.WriteHeader(http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, content)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// watched is a command of which is known what it takes.
type watched struct {
	cmd  *exec.Cmd
	out  strings.Builder
	most int64 // bytes on disk of what is watched
}

// watch runs a command and watches directories until it has ended. With until it is killed as soon
// as that is so.
func watch(t *testing.T, dirs []string, until func() bool, args ...string) *watched {
	t.Helper()
	w := &watched{cmd: exec.Command(granaryBinary, args...)}
	w.cmd.Stdout, w.cmd.Stderr = &w.out, &w.out
	w.cmd.Env = append(os.Environ(), "TMPDIR="+dirs[0])
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.cmd.Wait() }()
	for killed := false; ; {
		w.most = max(w.most, disk(t, dirs...))
		if !killed && until != nil && until() {
			killed = true
			_ = w.cmd.Process.Kill()
		}
		select {
		case err := <-ended:
			if killed != (err != nil) {
				t.Fatalf("%q: %v\n%s", args, err, w.out.String())
			}
			t.Logf("granary %s: %.1f s, killed %v, %d MiB of memory, %d MiB on disk", args[0], time.Since(begin).Seconds(), killed, w.memory()>>20, w.most>>20)
			if w.memory() > nodeMemory { // of commands with a node of their own
				t.Errorf("granary %s has taken %d bytes of memory", args[0], w.memory())
			}
			return w
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// memory returns the most that the command has had in memory, in bytes.
func (w *watched) memory() int64 {
	return w.cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
}

// memory returns the most that the node has had in memory, in bytes.
func (n *node) memory(t *testing.T) int64 {
	t.Helper()
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`).FindSubmatch(p)
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// begun returns how many bytes of a blob a node has from its beginning on.
func (n *node) begun(t *testing.T, d digest.Digest) int64 {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("%s/api/v1/import/%s?repository=%s/large&size=%d", n.admin, d, upstreamName, int64(largeSize)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var status struct{ Offset int64 }
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	return status.Offset
}

// TestLargeImage exports an image of 10 GiB and imports it, with both killed in the midst, in little
// memory and without room for more than what comes of it.
func TestLargeImage(t *testing.T) {
	tmp, dir := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "large.tar")
	part := func() int64 { return disk(t, dir) }
	n := startNode(t, serveLargeImage(t), "--cache-size", "12GiB")
	export := []string{"export", upstreamName + "/large:v1", "oci-archive:" + file, "--node", n.admin}
	watch(t, []string{tmp, dir}, func() bool { return part() > largeSize/2 }, export...)
	there, before := part(), n.metric(t, "granary_bytes_total")
	w := watch(t, []string{tmp, dir}, nil, export...)
	if again := n.metric(t, "granary_bytes_total") - before; again > largeSize-there+aLittle {
		t.Errorf("%d bytes were there, and %d were sent again", there, again)
	}
	if w.memory() > aLittle || w.most > largeSize+aLittle {
		t.Errorf("the export took %d bytes of memory and %d on disk", w.memory(), w.most)
	}
	t.Logf("the node that it came from: %d MiB of memory", n.memory(t)>>20)
	if n.memory(t) > nodeMemory {
		t.Errorf("the node has taken %d bytes of memory", n.memory(t))
	}
	_ = n.End(syscall.SIGTERM)
	if err := os.RemoveAll(n.dir); err != nil {
		t.Fatal(err)
	}

	// By a node of its own, which is killed with it; and then through one that runs on what that has left.
	data := filepath.Join(t.TempDir(), "node")
	blob := filepath.Join(data, "blobs/sha256", largeDigest.Encoded()[:2])
	watch(t, []string{tmp, data}, func() bool { return disk(t, blob) > largeSize/2 }, "import", "oci-archive:"+file, "--data-dir", data, "--cache-size", "12GiB", "--node", "http://127.0.0.1:1")
	n = &node{address: programs.FreeAddress(t), dir: data}
	n.url, n.admin = "http://"+n.address, "http://"+programs.FreeAddress(t)
	n.args = []string{"serve", "--data-dir", data, "--cache-size", "12GiB", "--listen", n.address, "--admin", strings.TrimPrefix(n.admin, "http://"), "--upstream", upstreamName + "=http://127.0.0.1:1"}
	n.restart(t)
	if has := n.begun(t, largeDigest); has < largeSize/4 {
		t.Errorf("%d bytes of the layer have stayed", has)
	} else {
		t.Logf("%d MiB of the layer have stayed", has>>20)
	}
	w = watch(t, []string{tmp, data}, nil, "import", "oci-archive:"+file, "--node", n.admin)
	if w.memory() > aLittle || w.most > largeSize+aLittle {
		t.Errorf("the import took %d bytes of memory and %d on disk", w.memory(), w.most)
	}
	t.Logf("the node that has it: %d MiB of memory", n.memory(t)>>20)
	if n.memory(t) > nodeMemory {
		t.Errorf("the node has taken %d bytes of memory", n.memory(t))
	}
	resp, err := http.Get(n.url + "/v2/" + upstreamName + "/large/blobs/" + string(largeDigest))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sum := digest.SHA256.Hash()
	if _, err := io.Copy(sum, resp.Body); err != nil || digest.NewDigest(digest.SHA256, sum) != largeDigest {
		t.Errorf("the layer is served with digest %s, %v", digest.NewDigest(digest.SHA256, sum), err)
	}
	if disk(t, tmp) > 64<<10 {
		t.Errorf("%s holds %d bytes", tmp, disk(t, tmp))
	}
}

// TestTheDiskOfALargeBlobThatIsKept is what the settings say.
func TestTheDiskOfALargeBlobThatIsKept(t *testing.T) {
	for keep, share := range map[string]int64{"all": 100, "shared": 50} {
		nodes := startPair(t, serveLarge(t, large{largeSize}), func(int) []string { return []string{"--keep", keep, "--cache-size", "20GiB"} })
		pullLarge(t, nodes[0], "")
		size := disk(t, nodes[0].dir)
		t.Logf("--keep=%s: %d MiB", keep, size>>20)
		if size < largeSize/100*(share-10) || size > largeSize/100*(share+10) {
			t.Errorf("--keep=%s takes %d bytes of the disk", keep, size)
		}
	}
}
