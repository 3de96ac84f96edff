package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	layersOfImage = 3
	layerSize     = 4<<20 + 17
)

// registry has the images app:1, app:2, …, each of other layers, and knows who asked.
type registry struct {
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	tags  map[string]digest.Digest
	sent  map[string]int64 // bytes of blobs, by the name that the client gives itself
}

func newRegistry() *registry {
	r := &registry{blobs: make(map[digest.Digest][]byte), tags: make(map[string]digest.Digest), sent: make(map[string]int64)}
	for i := range maxImages {
		r.add(i)
	}
	return r
}

// maxImages is how many images there are.
const maxImages = 12

func imageRef(i int) string { return fmt.Sprintf("%s:5000/app:%d", outsideAddress, i) }

func (r *registry) add(i int) {
	put := func(mediaType string, p []byte) ocispec.Descriptor {
		d := digest.FromBytes(p)
		r.blobs[d] = p
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	random := rand.NewChaCha8([32]byte{byte(i)})
	for range layersOfImage {
		layer := make([]byte, layerSize)
		_, _ = random.Read(layer)
		m.Layers = append(m.Layers, put(ocispec.MediaTypeImageLayer, layer))
	}
	m.Config = put(ocispec.MediaTypeImageConfig, fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","created":"2026-01-01T00:00:%02dZ"}`, i))
	p, _ := json.Marshal(m)
	r.tags[fmt.Sprint(i)] = put(m.MediaType, p).Digest
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if q.URL.Path == "/v2/" {
		return
	}
	// Any repository has all images.
	at := max(strings.LastIndex(q.URL.Path, "/manifests/"), strings.LastIndex(q.URL.Path, "/blobs/"))
	kind, name, _ := strings.Cut(q.URL.Path[max(at, 0)+1:], "/")
	r.mu.Lock()
	d := digest.Digest(name)
	if tagged, ok := r.tags[name]; ok && kind == "manifests" {
		d = tagged
	}
	p, ok := r.blobs[d]
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, q)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if kind == "manifests" {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	}
	w.Header().Set("Docker-Content-Digest", string(d))
	client, _, _ := strings.Cut(q.UserAgent(), "/")
	http.ServeContent(&counted{w, r, client, kind == "blobs"}, q, "", time.Time{}, bytes.NewReader(p))
}

type counted struct {
	http.ResponseWriter
	r      *registry
	client string
	blob   bool
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	if c.blob {
		c.r.mu.Lock()
		c.r.sent[c.client] += int64(n)
		c.r.mu.Unlock()
	}
	return n, err
}

// sentTo returns the bytes of blobs that clients of a name have got.
func (r *registry) sentTo(client string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[client]
}
