package sites

import (
	"bytes"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/netns"
)

// RegistryHost is what the registry is called at nodes; it resolves nowhere. RegistryAddress and RegistryURL are where
// it is.
const (
	RegistryHost    = "registry.test"
	RegistryAddress = registryAddress + ":5000"
	RegistryURL     = "http://" + RegistryAddress
)

// Registry has images in memory and in files, and serves them to everybody.
type Registry struct {
	server *http.Server
	mu     sync.Mutex
	things map[string]thing // by path
}

// thing is a blob or a manifest.
type thing struct {
	mediaType string
	digest    digest.Digest
	bytes     []byte
	file      string // has it instead, unless it is ""
}

func startRegistry(s *netns.Space) (*Registry, error) {
	l, err := s.Listen(RegistryAddress)
	if err != nil {
		return nil, err
	}
	r := &Registry{things: make(map[string]thing)}
	r.server = &http.Server{Handler: r}
	go func() { _ = r.server.Serve(l) }()
	return r, nil
}

// ServeHTTP implements [http.Handler], as the distribution specification has it ("Pull").
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
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
	if t.file != "" {
		http.ServeFile(w, q, t.file)
		return
	}
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(t.bytes))
}

// PutBlob puts a blob into a repository.
func (r *Registry) PutBlob(name, mediaType string, p []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
	r.put("/v2/"+name+"/blobs/"+string(d.Digest), thing{mediaType: mediaType, digest: d.Digest, bytes: p})
	return d
}

// PutFile puts the blob that a file has into a repository.
func (r *Registry) PutFile(name string, d ocispec.Descriptor, file string) {
	r.put("/v2/"+name+"/blobs/"+string(d.Digest), thing{mediaType: d.MediaType, digest: d.Digest, file: file})
}

func (r *Registry) put(path string, t thing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.things[path] = t
}
