package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/simtest/programs"
)

// startCache starts nginx before a gateway, as a cache of what it says may be kept, and returns its
// URL and where it keeps it.
func startCache(t *testing.T, gateway string) (url, kept string) {
	t.Helper()
	dir, address := t.TempDir(), programs.FreeAddress(t)
	kept = filepath.Join(dir, "kept")
	config := programs.Write(t, dir, "nginx.conf", fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log stderr;
events { worker_connections 64; }
http {
	access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	proxy_cache_path %[2]s keys_zone=chunks:1m;
	server {
		listen %[3]s;
		location /ipfs/ {
			proxy_pass %[4]s;
			proxy_cache chunks;
			add_header X-Cache-Status $upstream_cache_status always;
		}
	}
}
`, dir, kept, address, gateway))
	programs.Start(t, programs.OfSystem(t, "nginx"), "-c", config, "-g", "user root;")
	url = "http://" + address
	programs.Eventually(t, "nginx answers", func() bool {
		resp, err := http.Get(url)
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil
	})
	return url, kept
}

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
	url, kept := startCache(t, "http://"+gateway)
	inCache := func() (files int) {
		_ = filepath.WalkDir(kept, func(_ string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				files++
			}
			return nil
		})
		return files
	}
	get := func(path string) string {
		return programs.Run(t, nil, curl, "-s", "-o", "/dev/null", "-w", "%{http_code} %header{x-cache-status}", url+path)
	}

	m := n.mapOf(t, "go", ":", 0)
	for _, d := range m.Chunks[:min(3, len(m.Chunks))] {
		c, err := blocks.CID(d)
		if err != nil {
			t.Fatal(err)
		}
		path := "/ipfs/" + c.String() + "?format=raw"
		sum := programs.Run(t, nil, "sh", "-c", curl+" -fsS '"+url+path+"' | sha256sum")
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
