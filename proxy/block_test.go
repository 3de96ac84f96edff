package proxy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/ref"
)

// mapOf pulls a blob, and returns what its chunks are.
func (s *stack) mapOf(t *testing.T, repository string, d digest.Digest, header ...string) (all proxy.BlobMap) {
	t.Helper()
	if resp, _ := s.do(t, http.MethodGet, "/v2/"+repository+"/blobs/"+string(d), header...); resp.StatusCode != http.StatusOK {
		t.Fatalf("pull: %s", resp.Status)
	}
	resp, body := s.do(t, http.MethodGet, "/v2/"+repository+"/_granary/map/"+string(d), header...)
	for begin := time.Now(); resp.StatusCode == http.StatusNotFound && time.Since(begin) < time.Minute; { // while the last chunk is written
		time.Sleep(time.Millisecond)
		resp, body = s.do(t, http.MethodGet, "/v2/"+repository+"/_granary/map/"+string(d), header...)
	}
	if err := json.Unmarshal(body, &all); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("map: %s: %s", resp.Status, body)
	}
	return all
}

func as(authorization string) access.Caller {
	c, _ := access.FromHeader(http.Header{"Authorization": {authorization}})
	return c
}

func in(repository string) ref.Repository {
	return ref.Repository{Host: "origin.test", Name: repository}
}

func TestAMapNamesTheChunksOfABlob(t *testing.T) {
	o, layer := newOrigin(), random(5<<20+3, 1)
	manifest := o.add("app", layer, random(1000, 2))
	s, d := newStack(t, o, true), digest.FromBytes(layer)
	at := "/v2/app/_granary/map/" + string(d)
	if resp, body := s.do(t, http.MethodGet, at); resp.StatusCode != http.StatusNotFound || code(body) != "BLOB_UNKNOWN" {
		t.Errorf("of a blob that is not here: %s %s", resp.Status, body)
	}
	all := s.mapOf(t, "app", d)
	if all.Blob != d || all.Size != int64(len(layer)) || all.ChunkSize != 1<<20 || all.First != 0 || len(all.Chunks) != 6 {
		t.Fatalf("map: %+v", all)
	}
	for i, c := range all.Chunks {
		want := layer[i<<20 : min((i+1)<<20, len(layer))]
		if got, err := s.registry.Block(t.Context(), c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("chunk %d: %d bytes, %v", i, len(got), err)
		}
		if n, err := s.registry.BlockSize(t.Context(), c); err != nil || n != int64(len(want)) {
			t.Errorf("chunk %d: size %d, %v", i, n, err)
		}
	}
	for query, want := range map[string][]digest.Digest{
		"?first=4": all.Chunks[4:], "?first=1&n=2": all.Chunks[1:3], "?n=0": {}, "?first=6": {}, "?n=99999999": all.Chunks,
	} {
		resp, body := s.do(t, http.MethodGet, at+query)
		var part proxy.BlobMap
		if err := json.Unmarshal(body, &part); err != nil || resp.StatusCode != http.StatusOK || fmt.Sprint(part.Chunks) != fmt.Sprint(want) || !bytes.Contains(body, []byte(`"chunks":[`)) {
			t.Errorf("%s: %s %s", query, resp.Status, body)
		}
	}
	for _, query := range []string{"?first=7", "?first=-1", "?n=-1", "?n=x", "?first=99999999999999999999"} {
		if resp, body := s.do(t, http.MethodGet, at+query); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s %s", query, resp.Status, body)
		}
	}
	s.do(t, http.MethodGet, "/v2/app/manifests/v1")
	if got, err := s.registry.Block(t.Context(), manifest); err != nil || digest.FromBytes(got) != manifest {
		t.Errorf("a manifest by its digest: %v", err)
	}
	for _, d := range []digest.Digest{digest.FromString("of nothing"), digest.SHA512.FromBytes(layer), d, "sha256:zz", ""} {
		if _, err := s.registry.Block(t.Context(), d); !errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("%q: %v", d, err)
		}
	}
}

// TestAChunkIsForThoseWhoseRegistryGivesIt: neither its digest, nor another repository that everybody
// may read, opens a chunk of a private one.
func TestAChunkIsForThoseWhoseRegistryGivesIt(t *testing.T) {
	o, layer := newOrigin(), random(3<<20, 1)
	secretManifest := o.add("secret", layer)
	o.private["secret"] = "basic"
	o.add("public", random(1<<20, 2))
	o.add("evil", layer, random(10, 3)) // which names it, and is not the one that has it
	delete(o.blobs, "evil@"+string(digest.FromBytes(layer)))
	s := newStack(t, o, true)
	good := basic(password)
	for _, repository := range []string{"public", "evil"} {
		s.do(t, http.MethodGet, "/v2/"+repository+"/manifests/v1")
	}
	s.do(t, http.MethodGet, "/v2/secret/manifests/v1", "Authorization", good)
	all := s.mapOf(t, "secret", digest.FromBytes(layer), "Authorization", good)
	if resp, _ := s.do(t, http.MethodGet, "/v2/secret/_granary/map/"+string(all.Blob)); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the map, for everybody: %s", resp.Status)
	}
	if resp, _ := s.do(t, http.MethodGet, "/v2/evil/_granary/map/"+string(all.Blob)); resp.StatusCode != http.StatusNotFound {
		t.Errorf("the map, of another repository: %s", resp.Status)
	}
	asked := len(o.requests("/secret/"))
	for _, d := range append(all.Chunks, secretManifest) {
		for range 2 {
			if _, err := s.registry.Block(t.Context(), d); !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("%s, for everybody: %v", d, err)
			}
			if _, err := s.registry.BlockSize(t.Context(), d); !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("the size of %s, for everybody: %v", d, err)
			}
		}
		for _, c := range []struct{ repository, authorization string }{
			{"secret", ""}, {"secret", basic("wrong")}, {"public", good}, {"evil", good}, {"evil", ""}, {"nowhere", good},
		} {
			if _, err := s.registry.BlockFor(t.Context(), in(c.repository), as(c.authorization), d); !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("%s in %s: %v", d, c.repository, err)
			}
		}
		if got, err := s.registry.BlockFor(t.Context(), in("secret"), as(good), d); err != nil || digest.FromBytes(got) != d {
			t.Errorf("%s, for who may read it: %v", d, err)
		}
	}
	before := len(o.requests("/secret/"))
	for range 100 {
		_, _ = s.registry.Block(t.Context(), all.Chunks[0])
	}
	if now := len(o.requests("/secret/")); now != before {
		t.Errorf("for what it had refused the registry was asked %d times more (and %d before)", now-before, before-asked)
	}
}

func TestWhatTurnsPrivateIsNotServedOn(t *testing.T) {
	o, layer := newOrigin(), random(2<<20, 1)
	o.add("app", layer)
	var shared bool
	s := newStack(t, o, true, func(c *proxy.Config) {
		c.Access.PublicFor = 50 * time.Millisecond
		c.Access.Shared = func(string) bool { return shared }
	})
	d := s.mapOf(t, "app", digest.FromBytes(layer)).Chunks[0]
	block := func() error {
		_, err := s.registry.Block(t.Context(), d)
		return err
	}
	time.Sleep(2 * 50 * time.Millisecond) // so that it is asked again
	if err := block(); err != nil {
		t.Fatalf("while it is public: %v", err)
	}
	o.set(func() { o.private["app"] = "basic" })
	for block() == nil {
		time.Sleep(time.Millisecond)
	}
	o.set(func() { o.private["app"] = "" })
	for block() != nil {
		time.Sleep(time.Millisecond)
	}
	s.upstream.Close()
	time.Sleep(2 * 50 * time.Millisecond)
	if err := block(); err != nil {
		t.Errorf("while the registry cannot be asked: %v", err)
	}
	shared = true
	if err := block(); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("what the node reads with credentials of its own: %v", err)
	}
}
