package peers

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// TestADrainingNodeGivesItsClientsAllOfIt from other members, although it has been
// told to end and the registry is dead.
func TestADrainingNodeGivesItsClientsAllOfIt(t *testing.T) {
	r := newRegistry(t)
	layer := random(48<<20, 77)
	img := r.push("app", "v1", layer)
	c := newCluster(t, r, 2)
	pullAtOnce(t, img, 1, c.members[0])
	if err := c.members[1].gives(layer[:1], img.path(digest.FromBytes(layer)), "Range", "bytes=0-0"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // the blob is announced
	r.kill()
	resp, err := c.members[1].send(http.MethodGet, img.path(digest.FromBytes(layer)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	c.members[1].cancel()
	time.Sleep(time.Second) // the rest is read while the node drains
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != int64(len(layer)-1<<20) {
		t.Errorf("%d bytes more, %v", n, err)
	}
	c.members[1].end(t)
}

// TestRangesThatRestOnTheUpstreamAlone are fetched once, and kept.
func TestRangesThatRestOnTheUpstreamAlone(t *testing.T) {
	r := newRegistry(t)
	layer := random(24<<20, 78)
	img := r.push("app", "v1", layer)
	c := newCluster(t, r, 2, func(c *node.Config) { c.UnprovenRanges = "upstream" })
	for _, m := range c.members {
		for range 3 {
			if err := m.gives(layer[9<<20:9<<20+4096], img.path(digest.FromBytes(layer)), "Range", "bytes=9437184-9441279"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := r.count("GET", "/blobs/"+string(digest.FromBytes(layer))); n != len(c.members) {
		t.Errorf("one range was fetched %d times by %d nodes that are to believe nobody", n, len(c.members))
	}
}
