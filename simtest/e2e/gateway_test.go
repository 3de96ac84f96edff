package e2e

import (
	"encoding/json"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/simtest/programs"
)

// mapOf pulls a layer, and returns what its chunks are.
func (n *node) mapOf(t *testing.T, repository, credential string, layer int) (m proxy.BlobMap) {
	t.Helper()
	at := n.url + "/v2/" + repository
	d := string(image.Layers[layer].Digest)
	programs.Run(t, nil, "curl", "-fsS", "-u", credential, "-o", "/dev/null", at+"/blobs/"+d)
	programs.Eventually(t, "there is a map of "+d, func() bool { // which is when the last chunk is written
		said := programs.Run(t, nil, "curl", "-sS", "-u", credential, at+"/_granary/map/"+d)
		return json.Unmarshal([]byte(said), &m) == nil && len(m.Chunks) > 0
	})
	return m
}

// TestAnyCacheServesChunks has nginx serve chunks that it got from a node once, to who knows nothing
// but their CIDs, and none of a private repository.
func TestAnyCacheServesChunks(t *testing.T) {
	curl := programs.OfSystem(t, "curl")
	public, private := startRegistry(t), startPrivateRegistry(t, "basic")
	gateway := programs.FreeAddress(t)
	n := startNode(t, public.URL, "--upstream", "private.test="+private.URL, "--gateway-listen", gateway)
	cache := startCache(t, gateway)
	inCache := func() (files int) {
		_ = filepath.WalkDir(cache.kept, func(_ string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				files++
			}
			return nil
		})
		return files
	}
	get := func(path string) string {
		return programs.Run(t, nil, curl, "-s", "--cacert", cache.certificate, "-o", "/dev/null", "-w", "%{http_code} %header{x-cache-status}", cache.url+path)
	}

	m := n.mapOf(t, "go", ":", 0)
	for _, d := range m.Chunks[:min(3, len(m.Chunks))] {
		c, err := blocks.CID(d)
		if err != nil {
			t.Fatal(err)
		}
		path := "/ipfs/" + c.String() + "?format=raw"
		sum := programs.Run(t, nil, "sh", "-c", curl+" -fsS --cacert "+cache.certificate+" '"+cache.url+path+"' | sha256sum")
		if sum != d.Encoded()+"  -\n" {
			t.Errorf("%s: %s", path, sum)
		}
		asked := n.metric(t, "granary_gateway_requests_total")
		if got := get(path); got != "200 HIT" {
			t.Errorf("%s, again: %s", path, got)
		}
		if now := n.metric(t, "granary_gateway_requests_total"); now != asked {
			t.Errorf("the node was asked %d times more for what the cache has", now-asked)
		}
	}
	before := inCache()
	if before == 0 {
		t.Error("nothing is in the cache")
	}

	secret := len(image.Layers) - 1 // of which the public repository has not been read
	m = n.mapOf(t, "private.test/go", username+":"+password, secret)
	absent, _ := blocks.CID(digest.Digest("sha256:" + strings.Repeat("0", 64)))
	for range 2 {
		for _, d := range m.Chunks {
			c, _ := blocks.CID(d)
			if got := get("/ipfs/" + c.String() + "?format=raw"); !strings.HasPrefix(got, "404 ") || strings.HasSuffix(got, "HIT") {
				t.Errorf("a private chunk: %s", got)
			}
		}
		if got := get("/ipfs/" + absent.String() + "?format=raw"); !strings.HasPrefix(got, "404 ") || strings.HasSuffix(got, "HIT") {
			t.Errorf("no chunk: %s", got)
		}
	}
	if now := inCache(); now != before {
		t.Errorf("%d answers of a private repository are in the cache", now-before)
	}
}
