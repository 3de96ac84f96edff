package deploy

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
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
	r.addFiles()
	return r
}

// addFiles adds the image app:files, which has one file.
func (r *registry) addFiles() {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	_ = w.WriteHeader(&tar.Header{Name: "hello", Mode: 0o644, Size: 5, Typeflag: tar.TypeReg})
	_, _ = w.Write([]byte("world"))
	_ = w.Close()
	r.tag("files", r.put(ocispec.MediaTypeImageLayer, layer.Bytes()))
}

func (r *registry) put(mediaType string, p []byte) ocispec.Descriptor {
	d := digest.FromBytes(p)
	r.blobs[d] = p
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
}

// tag makes an image of layers.
func (r *registry) tag(tag string, layers ...ocispec.Descriptor) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers}
	m.Config = r.put(ocispec.MediaTypeImageConfig, fmt.Appendf(nil, `{"architecture":%q,"os":"linux","author":%q}`, runtime.GOARCH, tag))
	p, _ := json.Marshal(m)
	r.tags[tag] = r.put(m.MediaType, p).Digest
}

// maxImages is how many images there are.
const maxImages = 12

func imageRef(i int) string { return fmt.Sprintf("%s:5000/app:%d", outsideAddress, i) }

func (r *registry) add(i int) {
	random := rand.NewChaCha8([32]byte{byte(i)})
	var layers []ocispec.Descriptor
	for range layersOfImage {
		layer := make([]byte, layerSize)
		_, _ = random.Read(layer)
		layers = append(layers, r.put(ocispec.MediaTypeImageLayer, layer))
	}
	r.tag(fmt.Sprint(i), layers...)
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
