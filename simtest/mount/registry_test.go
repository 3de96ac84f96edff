package mount

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What a registry does with requests for blobs, those that it is at included.
const (
	answering   int32 = iota
	dead              // breaks off
	stuck             // waits until it is another
	stuckInside       // the same, but for beginnings of blobs
)

// registry serves an image as app:v1.
type registry struct {
	*httptest.Server
	img   *image
	sent  atomic.Int64 // answers with parts of blobs
	size  atomic.Int64 // bytes of those
	state atomic.Int32
	held  atomic.Int64 // requests that have been stuck
}

func startRegistry(t *testing.T, img *image) *registry {
	t.Helper()
	r := &registry{img: img}
	r.Server = httptest.NewServer(r)
	t.Cleanup(func() {
		r.state.Store(dead)
		r.Close()
	})
	return r
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	what := q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]
	switch manifest := string(digest.FromBytes(r.img.manifest)); {
	case q.URL.Path == "/v2/":
	case strings.Contains(q.URL.Path, "/manifests/") && (what == "v1" || what == manifest):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", manifest)
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(r.img.manifest))
	case strings.Contains(q.URL.Path, "/blobs/") && r.img.blobs[what] != nil:
		r.sent.Add(1)
		http.ServeContent(&failing{w, r, q}, q, "", time.Time{}, bytes.NewReader(r.img.blobs[what]))
	default:
		http.NotFound(w, q)
	}
}

// failing is a response of a registry that may be dead or stuck.
type failing struct {
	http.ResponseWriter
	r *registry
	q *http.Request
}

func (f *failing) Write(p []byte) (int, error) {
	if f.waits() {
		f.r.held.Add(1)
	}
	for f.waits() && f.q.Context().Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	if f.r.state.Load() == dead {
		panic(http.ErrAbortHandler)
	}
	n, err := f.ResponseWriter.Write(p)
	f.r.size.Add(int64(n))
	return n, err
}

func (f *failing) waits() bool {
	state := f.r.state.Load()
	return state == stuck || state == stuckInside && !strings.HasPrefix(f.q.Header.Get("Range"), "bytes=0-")
}
