package main

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

	"github.com/granary-oci/granary/simtest/netns"
)

const (
	registryHost = "registry.test" // what the registry is called at nodes; it resolves nowhere
	tag          = "v1"
)

// image is what is pulled.
type image struct {
	name   string
	digest digest.Digest
	size   int64
}

// registry has images in memory, and serves them to everybody.
type registry struct {
	server *http.Server
	mu     sync.Mutex
	things map[string]thing // by path
}

// thing is a blob or a manifest.
type thing struct {
	mediaType string
	digest    digest.Digest
	bytes     []byte
}

func startRegistry(s *netns.Space) (*registry, error) {
	l, err := s.Listen(s.Address + ":5000")
	if err != nil {
		return nil, err
	}
	r := &registry{things: make(map[string]thing)}
	r.server = &http.Server{Handler: r}
	go func() { _ = r.server.Serve(l) }()
	return r, nil
}

// ServeHTTP implements [http.Handler], as the distribution specification has it ("Pull").
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if q.URL.Path == "/v2/" {
		return
	}
	r.mu.Lock()
	t, ok := r.things[q.URL.Path]
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, q)
		return
	}
	w.Header().Set("Content-Type", t.mediaType)
	w.Header().Set("Docker-Content-Digest", string(t.digest))
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(t.bytes))
}

// push makes an image of so many random bytes, of five layers, that shares none with one of another seed.
func (r *registry) push(seed byte, size int64) *image {
	img := &image{name: fmt.Sprint("app", seed)}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = r.put(img, "blobs", ocispec.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}`+strings.Repeat(" ", int(seed))))
	noise := rand.NewChaCha8([32]byte{seed})
	for _, share := range []int64{50, 25, 15, 8, 2} { // per cent
		p := make([]byte, size*share/100)
		_, _ = noise.Read(p)
		m.Layers = append(m.Layers, r.put(img, "blobs", ocispec.MediaTypeImageLayer, p))
	}
	p, _ := json.Marshal(m)
	img.digest = r.put(img, "manifests", ocispec.MediaTypeImageManifest, p).Digest
	r.mu.Lock()
	defer r.mu.Unlock()
	r.things["/v2/"+img.name+"/manifests/"+tag] = thing{ocispec.MediaTypeImageManifest, img.digest, p}
	return img
}

func (r *registry) put(img *image, kind, mediaType string, p []byte) ocispec.Descriptor {
	d := digest.FromBytes(p)
	img.size += int64(len(p))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.things["/v2/"+img.name+"/"+kind+"/"+string(d)] = thing{mediaType, d, p}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
}
