package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
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
)

const (
	largeSize  = 10 << 30
	largePiece = 1 << 20
	// aLittle is how much memory a command may take, and how much room it may take beside what it makes.
	aLittle = 256 << 20
	// nodeMemory is how much a node may: its caches and the windows of its readers.
	nodeMemory = 768 << 20
)

// largeBlob reads a blob that nobody stores: each piece is the same noise, with its number.
type largeBlob struct {
	noise []byte
	pos   int64
}

func newLargeBlob() *largeBlob {
	b := &largeBlob{noise: make([]byte, largePiece)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b.noise)
	return b
}

func (b *largeBlob) Read(p []byte) (n int, err error) {
	if b.pos >= largeSize {
		return 0, io.EOF
	}
	at := b.pos % largePiece
	binary.LittleEndian.PutUint64(b.noise, uint64(b.pos/largePiece))
	n = copy(p, b.noise[at:])
	b.pos += int64(n)
	return n, nil
}

func (b *largeBlob) Seek(off int64, whence int) (int64, error) {
	b.pos = map[int]int64{io.SeekStart: 0, io.SeekCurrent: b.pos, io.SeekEnd: largeSize}[whence] + off
	return b.pos, nil
}

// largeRegistry has an image whose one layer is the large blob.
func largeRegistry(t *testing.T) (url string, layer digest.Digest) {
	t.Helper()
	sum := digest.SHA256.Hash()
	if _, err := io.Copy(sum, newLargeBlob()); err != nil {
		t.Fatal(err)
	}
	layer = digest.NewDigest(digest.SHA256, sum)
	config := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + string(layer) + `"]}}`)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: layer, Size: largeSize}},
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
		case string(layer):
			w.Header().Set("Content-Type", "application/octet-stream")
			content = newLargeBlob()
		default:
			w.WriteHeader(http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, content)
	}))
	t.Cleanup(s.Close)
	return s.URL, layer
}

// used returns how many bytes on disk the files of directories take.
func used(dirs ...string) (n int64) {
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil // it has just gone
			}
			if info, err := e.Info(); err == nil {
				n += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return nil
		})
	}
	return n
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
		w.most = max(w.most, used(dirs...))
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
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
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
	if os.Getenv("GRANARY_TEST_LARGE") != "1" {
		t.Skip("it takes ten minutes and 22 GiB of disk; GRANARY_TEST_LARGE=1 runs it")
	}
	url, layer := largeRegistry(t)
	tmp, dir := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "large.tar")
	part := func() int64 { return used(dir) }
	n := startNode(t, url, "--cache-size", "12GiB")
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
	_ = n.end(syscall.SIGTERM)
	if err := os.RemoveAll(n.dir); err != nil {
		t.Fatal(err)
	}

	// By a node of its own, which is killed with it; and then through one that runs on what that has left.
	data := filepath.Join(t.TempDir(), "node")
	blob := filepath.Join(data, "blobs/sha256", layer.Encoded()[:2])
	watch(t, []string{tmp, data}, func() bool { return used(blob) > largeSize/2 }, "import", "oci-archive:"+file, "--data-dir", data, "--cache-size", "12GiB", "--node", "http://127.0.0.1:1")
	n = &node{address: freeAddress(t), dir: data}
	n.url, n.admin = "http://"+n.address, "http://"+freeAddress(t)
	n.args = []string{"serve", "--data-dir", data, "--cache-size", "12GiB", "--listen", n.address, "--admin", strings.TrimPrefix(n.admin, "http://"), "--upstream", upstreamName + "=http://127.0.0.1:1"}
	n.restart(t)
	if has := n.begun(t, layer); has < largeSize/4 {
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
	resp, err := http.Get(n.url + "/v2/" + upstreamName + "/large/blobs/" + string(layer))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sum := digest.SHA256.Hash()
	if _, err := io.Copy(sum, resp.Body); err != nil || digest.NewDigest(digest.SHA256, sum) != layer {
		t.Errorf("the layer is served with digest %s, %v", digest.NewDigest(digest.SHA256, sum), err)
	}
	if used(tmp) > 64<<10 {
		t.Errorf("%s holds %d bytes", tmp, used(tmp))
	}
}
