package peers

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
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

// TestWhatARuntimeKeepsIsLent to other members, and stored nowhere else: of a blob that came
// through a node which keeps nothing, the runtime has the only copy.
func TestWhatARuntimeKeepsIsLent(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	layer := random(40<<20+5, 91) // more than the memory of both nodes holds
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
func TestMembersThatKeepTheirShare(t *testing.T) { // alone: who is thought to have left has no share
	r := newRegistry(t)
	layer := random(32<<20, 95)
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
