package proxy_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy"
)

// accounts are bytes by image, and by face and source, or by source alone of what came.
type accounts struct {
	mu  sync.Mutex
	all map[proxy.Image]map[string]int64
}

func (a *accounts) count(i proxy.Image, what string, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil {
		a.all = make(map[proxy.Image]map[string]int64)
	}
	if a.all[i] == nil {
		a.all[i] = make(map[string]int64)
	}
	a.all[i][what] += n
}

func (a *accounts) keep(cfg *proxy.Config) {
	cfg.Served = func(i proxy.Image, face, source string, n int64) { a.count(i, face, n) }
	cfg.Came = func(i proxy.Image, source string, n int64) { a.count(i, source, n) }
}

// want waits until an image's account is this, for what a client has read may be counted a moment later, and empties it.
func (a *accounts) want(t *testing.T, i proxy.Image, want map[string]int64) {
	t.Helper()
	var got map[string]int64
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(time.Millisecond) {
		a.mu.Lock()
		if got = maps.Clone(a.all[i]); maps.Equal(got, want) {
			delete(a.all, i)
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
	}
	t.Errorf("%s:%s@%s: %v, want %v", i.Repository, i.Tag, i.Digest, got, want)
}

// none fails the test if there are accounts of other images.
func (a *accounts) none(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.all) > 0 {
		t.Errorf("also %v", a.all)
	}
}

// TestBytesAreCountedForAnImage: for the one that was asked for last of those that have a blob, by its index; what is here does not come
// again. A signature is about an image, and has no part in it.
func TestBytesAreCountedForAnImage(t *testing.T) {
	stacks(t, func(t *testing.T, o *origin, onDisk bool) {
		var a accounts
		s := newStack(t, o, onDisk, a.keep)
		base, own, other := random(1<<20, 1), random(700_000, 2), random(1_200_000, 3)
		pull := func(manifests []string, blobs ...[]byte) {
			t.Helper()
			for _, m := range manifests {
				s.got(t, "/v2/app/manifests/"+m)
			}
			for _, b := range blobs {
				s.got(t, "/v2/app/blobs/"+string(digest.FromBytes(b)))
			}
		}
		first := o.add("app", base, own)
		pull([]string{"v1"}, base, own)
		n := int64(len(base) + len(own))
		a.want(t, proxy.Image{Repository: in("app"), Tag: "v1", Digest: first}, map[string]int64{"http": n, "upstream": n})

		second := o.addManifest("app", nil, base, other)
		nested, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []any{map[string]any{"mediaType": manifestType, "digest": second, "size": 1}}})
		signature, _ := json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": manifestType, "layers": []any{}, "subject": map[string]any{"mediaType": manifestType, "digest": second, "size": 1},
		})
		var index, signed digest.Digest
		o.set(func() {
			index, signed = o.put("app", "v2", nested), o.put("app", "sig", signature)
			o.types[string(index)] = indexType
		})
		pull([]string{"v2", string(second), string(signed), "sig"}, base, other)
		a.want(t, proxy.Image{Repository: in("app"), Tag: "v2", Digest: index}, map[string]int64{"http": int64(len(base) + len(other)), "upstream": int64(len(other))})

		pull([]string{string(first)}, base) // by digest, which does not take its name away
		a.want(t, proxy.Image{Repository: in("app"), Tag: "v1", Digest: first}, map[string]int64{"http": int64(len(base))})

		o.add("unasked", own)
		s.got(t, "/v2/unasked/blobs/"+string(digest.FromBytes(own)))
		a.want(t, proxy.Image{Repository: in("unasked")}, map[string]int64{"http": int64(len(own))})
		a.none(t)
	})
}

// TestMountsAreCountedForTheirImage: files as they are read, and what came of the layer for them.
func TestMountsAreCountedForTheirImage(t *testing.T) {
	var a accounts
	o := newOrigin()
	image, layer := mountedImage(t, o)
	s := newStack(t, o, true, a.keep, keepContents(t))
	s.got(t, "/v2/app/manifests/v1")
	m := s.mount(t, mountPath("app", image, "id"))
	defer m.end()
	if resp, body := s.do(t, http.MethodGet, filePath("app", layer, "large20"), proxy.MountHeader, "id"); resp.StatusCode != http.StatusOK || len(body) != 200_000 {
		t.Fatalf("%s, %d bytes", resp.Status, len(body))
	}
	eventually(t, "all is counted for the image", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		got := a.all[proxy.Image{Repository: in("app"), Tag: "v1", Digest: image}]
		return got["fuse"] == 200_000 && got["upstream"] >= 200_000 && len(a.all) == 1
	})
}
