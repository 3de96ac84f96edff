package peers

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// runtime is a directory as containerd has one, in which it keeps what it pulls.
type runtime struct {
	*testing.T
	dir string
}

func newRuntime(t *testing.T) *runtime {
	t.Helper()
	r := &runtime{t, t.TempDir()}
	if err := os.MkdirAll(filepath.Join(r.dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

// besides makes a node read what runtime keeps, and keep what it says of the rest.
func (r *runtime) besides(keep string) func(*node.Config) {
	return func(c *node.Config) { c.ContentDir, c.Keep = []string{r.dir}, keep }
}

func (r *runtime) path(d digest.Digest) string {
	return filepath.Join(r.dir, "blobs", "sha256", d.Encoded())
}

// keep puts what has been pulled where the runtime keeps it, as long ago as it takes for a
// change of a file to be seen.
func (r *runtime) keep(d digest.Digest, p []byte) {
	r.Helper()
	if err := os.WriteFile(r.path(d), p, 0o444); err != nil {
		r.Fatal(err)
	}
	r.settle(d)
}

func (r *runtime) settle(d digest.Digest) {
	r.Helper()
	before := time.Now().Add(-time.Minute)
	if err := os.Chtimes(r.path(d), before, before); err != nil {
		r.Fatal(err)
	}
}

// disk returns how many bytes of the disk a directory takes.
func disk(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestWhatARuntimeKeepsIsLent to other members, and stored nowhere else: of a blob that came
// through a node which keeps nothing, the runtime has the only copy.
func TestWhatARuntimeKeepsIsLent(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	layer := random(20<<20+5, 91)
	img := r.push("app", "v1", layer)
	theirs := newRuntime(t)
	c := newCluster(t, r, 1, func(c *node.Config) { c.Keep = "none" })
	first := c.join(theirs.besides("none"))
	pullAtOnce(t, img, 1, first)
	if n := first.Status().Store.Bytes; n >= 1<<20 {
		t.Errorf("a node that keeps nothing keeps %d bytes", n)
	}
	for d, p := range img.blobs {
		theirs.keep(d, p)
	}
	eventually(t, "the blob is announced", func() bool {
		sent := r.sent.Load()
		pullAtOnce(t, img, 1, c.members[0])
		return r.sent.Load() == sent
	})
	r.kill()
	pullAtOnce(t, img, 1, c.members...)
	for _, m := range c.members {
		if n := m.Status().Store.Bytes; n >= 1<<20 {
			t.Errorf("a node that keeps nothing keeps %d bytes", n)
		}
	}
	if err := os.Remove(theirs.path(img.order[1])); err != nil {
		t.Fatal(err)
	}
	if a := first.get(img.path(img.order[1])); a.status == http.StatusOK && a.err == nil {
		t.Error("a blob that nobody keeps any more was served")
	}
}

// TestAWrongFileOfARuntime is not served, nor lent, and is named once.
func TestAWrongFileOfARuntime(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	layer := random(6<<20, 92)
	img := r.push("app", "v1", layer)
	theirs := newRuntime(t)
	c := newCluster(t, r, 1)
	m := c.join(theirs.besides("none"))
	d := img.order[1]
	theirs.keep(d, append([]byte{layer[0] ^ 1}, layer[1:]...))
	for range 3 {
		pullAtOnce(t, img, 1, m)
		if err := m.gives(layer[4<<20:4<<20+9], img.path(d), "Range", "bytes=4194304-4194312"); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(m.log.String(), "the file does not have this digest"); n != 1 {
		t.Errorf("the file is named %d times", n)
	}
	theirs.keep(d, layer) // as after the runtime has fetched it again
	sent := r.sent.Load()
	pullAtOnce(t, img, 1, m)
	if more := r.sent.Load() - sent; more >= 1<<20 {
		t.Errorf("%d bytes came from the registry, although the file is right now", more)
	}
}

// TestWhatARuntimeKeepsOpensNothing to whoever knows its digest: not to readers of another
// repository, whose registry has none of it, nor to those of a registry that says it had.
func TestWhatARuntimeKeepsOpensNothing(t *testing.T) {
	t.Parallel()
	r, liar := newRegistry(t), newRegistry(t)
	layer, other := random(5<<20, 93), random(5<<20, 94)
	secret := r.push("secret", "v1", layer)
	r.restrict("bearer", map[string]string{"owner": "secret"}, "secret")
	img := r.push("app", "v1", other)
	d := secret.order[1]
	liar.set(func() { liar.content["app/blobs/"+string(d)] = other })
	theirs := newRuntime(t)
	theirs.keep(d, layer)
	m := run(t, func() node.Config {
		c := (&cluster{T: t, registry: r}).settings(theirs.besides("all"))
		c.ClusterConfig = node.ClusterConfig{}
		c.Upstream["liar.test"] = liar.URL
		return c
	}())
	if err := m.pull(secret, "Bearer owner"); err != nil {
		t.Fatal(err)
	}
	if n := m.Status().Store.Bytes; n >= 1<<20 {
		t.Errorf("%d bytes are stored a second time", n)
	}
	for what, path := range map[string]string{
		"nobody":             secret.path(d),
		"another repository": img.path(d),
		"another registry":   img.path(d) + "?ns=liar.test",
	} {
		a := m.get(path, "Range", "bytes=1048576-1048580")
		if a.err == nil && strings.Contains(string(a.body), string(layer[1<<20:1<<20+5])) {
			t.Errorf("%s was served (%d)", what, a.status)
		}
	}
}

// TestMembersThatKeepTheirShare of what they pull have it once together, and the registry has
// sent it once.
func TestMembersThatKeepTheirShare(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	layer := random(48<<20, 95)
	img := r.push("app", "v1", layer)
	c := newCluster(t, r, 3, func(c *node.Config) { c.Keep = "shared" })
	pullAtOnce(t, img, 2, c.members...)
	if sent := r.sent.Load(); sent > img.size()*105/100 && !slow {
		t.Errorf("the registry sent %d bytes of %d", sent, img.size())
	}
	var all int64
	for _, m := range c.members {
		n := m.Status().Store.Bytes
		if n > int64(len(layer))*2/3 {
			t.Errorf("one of three keeps %d bytes of %d", n, len(layer))
		}
		all += n
	}
	if all < int64(len(layer)) || all > int64(len(layer))*11/10 && !slow {
		t.Errorf("together they keep %d bytes of %d", all, len(layer))
	}
	r.kill()
	pullAtOnce(t, img, 1, c.members...)
}

// Of a blob of 10 GiB that consists of a line for each MiB and else of zeros.
const (
	largeSize   = 10 << 30
	largeDigest = digest.Digest("sha256:d5c19bfe39de650613b05b0c3307ea08c28f796b44dfead903430a000a61beeb")
)

// large is such a blob.
type large struct{ size int64 }

// ReadAt implements [io.ReaderAt].
func (l large) ReadAt(p []byte, off int64) (n int, err error) {
	clear(p)
	for mib := off >> 20 << 20; mib < min(off+int64(len(p)), l.size); mib += 1 << 20 {
		line := fmt.Sprintf("%d\n", mib)
		if at := mib - off; at >= 0 {
			copy(p[at:], line)
		} else if -at < int64(len(line)) {
			copy(p, line[-at:])
		}
	}
	n = int(min(int64(len(p)), l.size-off))
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// write writes the blob to a file, without the zeros.
func (l large) write(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(l.size); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < l.size; off += 1 << 20 {
		if _, err := f.WriteAt(fmt.Appendf(nil, "%d\n", off), off); err != nil {
			t.Fatal(err)
		}
	}
}

// newLargeRegistry returns a registry with such a blob in any repository.
func newLargeRegistry(t *testing.T, l large) *registry {
	r := newRegistry(t)
	r.set(func() {
		r.answer = func(w http.ResponseWriter, q *http.Request) {
			if !strings.HasSuffix(q.URL.Path, string(largeDigest)) {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			http.ServeContent(&sending{w, q, r}, q, "", time.Time{}, io.NewSectionReader(l, 0, l.size))
		}
	})
	return r
}

const largePath = "/v2/models/llm/blobs/" + string(largeDigest)

// pullLarge reads the blob through a member.
func pullLarge(t *testing.T, m *member) {
	t.Helper()
	resp, err := m.send(http.MethodGet, largePath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != largeSize {
		t.Fatalf("%d bytes: %v", n, err)
	}
}

// TestTheDiskOfALargeBlob that a runtime keeps, of 10 GiB, is the runtime's alone: a node that
// lends it to others takes next to nothing.
func TestTheDiskOfALargeBlob(t *testing.T) {
	t.Parallel()
	l := large{largeSize}
	theirs := newRuntime(t)
	c := newCluster(t, newLargeRegistry(t, l), 1, func(c *node.Config) { c.Keep = "none" })
	pullLarge(t, c.join(theirs.besides("none")))
	l.write(t, theirs.path(largeDigest))
	theirs.settle(largeDigest)
	want := make([]byte, 64)
	_, _ = l.ReadAt(want, 5<<30)
	eventually(t, "another member is lent what the runtime has", func() bool {
		before := c.members[0].Status().Received
		if err := c.members[0].gives(want, largePath, "Range", fmt.Sprintf("bytes=%d-%d", 5<<30, 5<<30+63)); err != nil {
			t.Error(err)
		}
		return c.members[0].Status().Received == before
	})
	for _, m := range c.members {
		if n := disk(t, m.cfg.DataDir); n > 16<<20 {
			t.Errorf("a node takes %d bytes of the disk", n)
		}
	}
}

// TestTheDiskOfALargeBlobThatIsKept is what the settings say. It takes 20 GiB of the disk, and is
// for those who ask for it.
func TestTheDiskOfALargeBlobThatIsKept(t *testing.T) {
	if os.Getenv("GRANARY_TEST_LARGE") != "" {
		measureKept(t, "all", largeSize*99/100, largeSize*101/100)
		measureKept(t, "shared", largeSize*40/100, largeSize*60/100)
	}
}

// measureKept measures the disk of the first of two members, through which the blob is pulled.
func measureKept(t *testing.T, keep string, least, most int64) {
	t.Helper()
	c := newCluster(t, newLargeRegistry(t, large{largeSize}), 2, func(c *node.Config) { c.Keep, c.CacheSize = keep, 20<<30 })
	pullLarge(t, c.members[0])
	n := disk(t, c.members[0].cfg.DataDir)
	t.Logf("--keep=%s: %d MiB", keep, n>>20)
	if n < least || n > most {
		t.Errorf("--keep=%s takes %d bytes of the disk", keep, n)
	}
	for _, m := range c.members {
		m.end(t)
	}
}
