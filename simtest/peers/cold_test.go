package peers

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/opencontainers/go-digest"
)

// slow is set where the race detector makes nodes so slow that they take each other
// to be silent, and go to the registry: what leaves that is not counted then.
var slow bool

// pushLarge makes an image with blobs of every kind of size, named by an index.
func pushLarge(r *registry, tag string) *image {
	img := r.push("app", tag, random(1, 1), random(1<<20, 2), random(9<<20, 3), random(30<<20, 4))
	r.pushIndex(img)
	return img
}

// TestAColdImageLeavesTheRegistryOnce: however many nodes and clients pull at
// once, and a node that comes later gets all of it from members.
func TestAColdImageLeavesTheRegistryOnce(t *testing.T) {
	r := newRegistry(t)
	img := pushLarge(r, "v1")
	r.delay, r.rate = 20*time.Millisecond, 16<<20 // a thin link, or the nodes would be short of time
	c := newCluster(t, r, 4)
	pullAtOnce(t, img, 2, c.members...)
	for _, d := range []digest.Digest{img.top, img.manifest} {
		if n := r.count("app/manifests/" + string(d)); n != 1 {
			t.Errorf("a manifest was asked for %d times", n)
		}
	}
	if n := r.count("app/manifests/v1"); n != 1 {
		t.Errorf("the tag was asked for %d times", n)
	}
	for d, p := range img.blobs {
		checkRequests(t, r, "app/blobs/"+string(d), int64(len(p)))
	}
	late := c.join()
	sent := r.sent.Load()
	pullAtOnce(t, img, 1, late)
	if more := r.sent.Load() - sent; more != 0 && !slow {
		t.Errorf("for a late node %d bytes left the registry again", more)
	}
	if got := late.Status().Received; got > 4096 && !slow {
		t.Errorf("the late node has %d bytes from the registry, which is more than manifests", got)
	}
}

// checkRequests checks that each byte of a blob was asked for once, and its size
// too.
func checkRequests(t *testing.T, r *registry, path string, size int64) {
	t.Helper()
	if n := r.count("HEAD " + path); n != 1 {
		t.Errorf("the size of a blob of %d bytes was asked for %d times", size, n)
	}
	stripes := int((size + chunk.StripeSize - 1) / chunk.StripeSize)
	if n := r.count(path); n > stripes+5 && !slow {
		t.Errorf("a blob of %d stripes took %d requests", stripes, n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if slow {
		return
	}
	asked := slices.SortedFunc(slices.Values(r.ranges[path]), func(a, b extent) int { return int(a.from - b.from) })
	at := int64(0)
	for _, e := range asked {
		if e.from != at {
			t.Errorf("a blob of %d bytes was asked for in %v", size, asked)
			return
		}
		at = e.to
	}
	if at != size {
		t.Errorf("a blob of %d bytes was asked for in %v", size, asked)
	}
}

// TestATagIsAskedForOnce by clients of all nodes, with either method.
func TestATagIsAskedForOnce(t *testing.T) {
	r := newRegistry(t)
	c := newCluster(t, r, 4)
	for i, delay := range []time.Duration{0, 100 * time.Millisecond} {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			repository := strings.ToLower(fmt.Sprint(method, i)) // each has another member that asks
			img := r.push(repository, "v1")
			r.set(func() { r.delay = delay })
			var all sync.WaitGroup
			for range 25 {
				for _, m := range c.members {
					all.Go(func() {
						if a := m.do(method, "/v2/"+repository+"/manifests/v1"); a.status != http.StatusOK {
							t.Errorf("%d %v", a.status, a.err)
						}
					})
				}
			}
			all.Wait()
			if n := r.count(repository + "/manifests/v1"); n != 1 {
				t.Errorf("%s after %v: the tag was asked for %d times", method, delay, n)
			}
			if n := r.count(repository + "/manifests/" + string(img.top)); n > 1 {
				t.Errorf("%s after %v: the manifest was asked for %d times", method, delay, n)
			}
		}
	}
}

// TestADeadRegistryIsNotMissed by nodes that come after its death, if one node has
// pulled the image when it was still alone.
func TestADeadRegistryIsNotMissed(t *testing.T) {
	r := newRegistry(t)
	img := pushLarge(r, "v1")
	c := newCluster(t, r, 1)
	pullAtOnce(t, img, 1, c.members...)
	r.kill()
	c.start()
	late := c.join()
	soon(t, img, late)
	time.Sleep(1100 * time.Millisecond) // what the registry said is taken to be so for a second
	a := late.do(http.MethodHead, "/v2/app/manifests/v1")
	if a.status != http.StatusOK || !strings.Contains(a.header.Get("Warning"), "stale") {
		t.Errorf("the tag: %d %v, Warning %q", a.status, a.err, a.header.Get("Warning"))
	}
	for d, p := range img.blobs {
		if len(p) > 2000 {
			if err := late.gives(p[1000:2000], img.path(d), "Range", "bytes=1000-1999"); err != nil {
				t.Errorf("range of a blob of %d bytes: %v", len(p), err)
			}
		}
	}
	pullAtOnce(t, img, 2, c.members...)
	if a := late.get("/v2/app/blobs/" + string(digest.FromString("nobody has it"))); a.status != http.StatusServiceUnavailable && a.status != http.StatusBadGateway {
		t.Errorf("a blob that nobody has: %d", a.status)
	}
}

// TestRangesThroughAllNodes: closed ones, and open ones that are broken off.
func TestRangesThroughAllNodes(t *testing.T) {
	r := newRegistry(t)
	layer := random(30<<20, 4)
	img := r.push("app", "v1", layer)
	d := digest.FromBytes(layer)
	c := newCluster(t, r, 3)
	var all sync.WaitGroup
	for i, m := range c.members {
		for _, e := range []struct {
			header   string
			from, to int
		}{
			{"bytes=0-0", 0, 1}, {"bytes=4194303-4194304", 4194303, 4194305}, {"bytes=29000000-", 29000000, len(layer)},
			{"bytes=-100", len(layer) - 100, len(layer)}, {"bytes=5000000-12999999", 5000000, 13000000},
		} {
			all.Go(func() {
				if err := m.gives(layer[e.from:e.to], img.path(d), "Range", e.header); err != nil {
					t.Errorf("node %d, %s: %v", i+1, e.header, err)
				}
			})
		}
		all.Go(func() {
			resp, err := m.send(http.MethodGet, img.path(d), "Range", "bytes=16777216-")
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if err := compare(io.LimitReader(resp.Body, 3<<20), layer[16<<20:19<<20]); err != nil {
				t.Errorf("node %d, an open range: %v", i+1, err)
			}
		})
	}
	all.Wait()
	pullAtOnce(t, img, 1, c.members...)
}

// TestOddBlobs: of no bytes, of one, and named by another algorithm.
func TestOddBlobs(t *testing.T) {
	r := newRegistry(t)
	c := newCluster(t, r, 3)
	for size, p := range map[string][]byte{"empty": {}, "one byte": {7}, "9 MiB": random(9<<20, 5)} {
		for _, d := range []digest.Digest{digest.SHA256.FromBytes(p), digest.SHA512.FromBytes(p)} {
			r.set(func() { r.content["app/blobs/"+string(d)] = p })
			var all sync.WaitGroup
			for i, m := range c.members {
				all.Go(func() {
					if err := m.gives(p, "/v2/app/blobs/"+string(d)); err != nil {
						t.Errorf("%s, %s, node %d: %v", size, d.Algorithm(), i+1, err)
					}
				})
			}
			all.Wait()
		}
	}
	if sent := r.sent.Load(); sent != 2*(1+9<<20) && !slow {
		t.Errorf("%d bytes left the registry", sent)
	}
}

// TestARegistryThatIgnoresRange: each node's bytes are right, and one reads the
// whole for all.
func TestARegistryThatIgnoresRange(t *testing.T) {
	r := newRegistry(t)
	r.noRange = true
	layer := random(30<<20, 6)
	img := r.push("app", "v1", layer)
	c := newCluster(t, r, 3)
	pullAtOnce(t, img, 1, c.members...)
	bodies := r.count("GET app/blobs/" + string(digest.FromBytes(layer)))
	t.Logf("%d bodies of the whole blob were begun, and %.1f times its bytes sent", bodies, float64(r.sent.Load())/float64(len(layer)))
	if bodies > 13 { // its stripes, and 5
		t.Errorf("the registry was asked for the whole blob %d times", bodies)
	}
	if r.sent.Load() >= 3*int64(len(layer)) && !slow {
		t.Errorf("%d bytes left the registry, as if each node were alone", r.sent.Load())
	}
}
