package demo

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry serves one image as a registry does: by the pull side of the OCI
// distribution specification, under any repository and any tag.
type Registry struct {
	Image *Image
	// Sent counts bytes of blobs that were sent.
	Sent atomic.Int64
}

// ServeHTTP implements [http.Handler].
func (s *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		return
	}
	if before, _, ok := strings.Cut(r.URL.Path, "/manifests/"); ok && strings.HasPrefix(before, "/v2/") {
		name := r.URL.Path[len(before)+len("/manifests/"):]
		if d := digest.Digest(name); d.Validate() == nil && d != s.Image.Manifest.Digest {
			http.NotFound(w, r)
			return
		}
		s.serve(w, r, s.Image.Manifest)
		return
	}
	_, name, _ := strings.Cut(r.URL.Path, "/blobs/")
	for _, b := range append(s.Image.Layers, s.Image.Config) {
		if string(b.Digest) == name {
			b.MediaType = "application/octet-stream"
			s.serve(w, r, b)
			return
		}
	}
	http.NotFound(w, r)
}

func (s *Registry) serve(w http.ResponseWriter, r *http.Request, desc ocispec.Descriptor) {
	w.Header().Set("Content-Type", desc.MediaType)
	w.Header().Set("Docker-Content-Digest", string(desc.Digest))
	http.ServeFile(counted{w, &s.Sent}, r, s.Image.Path(desc.Digest))
}

// counted counts the bytes of a body.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

// ReadFrom lets a file be sent without being copied.
func (c counted) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.n.Add(n)
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}
