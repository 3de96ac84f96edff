package stargz

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is an eStargz of a program and of noise.
type image struct {
	manifest []byte
	blobs    map[string][]byte // by digest
	layer    ocispec.Descriptor
	files    map[string][]byte
}

const (
	noiseFiles = 6
	noiseSize  = 3<<20 + 17
)

func makeImage(t *testing.T, program string) *image {
	t.Helper()
	img := &image{blobs: make(map[string][]byte), files: make(map[string][]byte)}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(name string, content []byte) {
		img.files[name] = content
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), ModTime: time.Unix(1e9, 0), Typeflag: tar.TypeReg})
		if _, werr := w.Write(content); err != nil || werr != nil {
			t.Fatal(errors.Join(err, werr))
		}
	}
	p, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	add("granary", p)
	for i := range noiseFiles {
		noise := make([]byte, noiseSize)
		_, _ = rand.NewChaCha8([32]byte{'s', byte(i)}).Read(noise)
		add(fmt.Sprint("noise-", i), noise)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	desc, diffID := img.addStargz(t, layer.Bytes())
	img.layer = desc
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: goruntime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/granary"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	img.manifest, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: img.add(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{desc},
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func (img *image) add(mediaType string, p []byte) ocispec.Descriptor {
	d := digest.FromBytes(p)
	img.blobs[string(d)] = p
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
}

func (img *image) addStargz(t *testing.T, layer []byte) (desc ocispec.Descriptor, diffID digest.Digest) {
	t.Helper()
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))), estargz.WithCompressionLevel(gzip.NoCompression))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	p, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	desc = img.add(ocispec.MediaTypeImageLayerGzip, p)
	desc.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: string(blob.TOCDigest())}
	return desc, blob.DiffID()
}

// registry serves the image as app:v1, and counts what leaves it of blobs.
type registry struct {
	*httptest.Server
	img  *image
	sent atomic.Int64
}

func startRegistry(t *testing.T, img *image) *registry {
	t.Helper()
	r := &registry{img: img}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
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
	case r.img.blobs[what] != nil:
		http.ServeContent(&counted{w, &r.sent}, q, "", time.Time{}, bytes.NewReader(r.img.blobs[what]))
	default:
		http.NotFound(w, q)
	}
}

type counted struct {
	http.ResponseWriter
	bytes *atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.bytes.Add(int64(n))
	return n, err
}

// wire is before the node, and remembers what it is asked for of blobs, and answers.
type wire struct {
	*httptest.Server
	mu    sync.Mutex
	asked []exchange
}

// exchange is a request, and its answer.
type exchange struct {
	method, ranges string
	status         int
	contentType    string
}

func startWire(t *testing.T, node string) *wire {
	t.Helper()
	to, err := url.Parse(node)
	if err != nil {
		t.Fatal(err)
	}
	w := new(wire)
	behind := httputil.NewSingleHostReverseProxy(to)
	behind.ModifyResponse = func(resp *http.Response) error {
		if q := resp.Request; strings.Contains(q.URL.Path, "/blobs/") {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked = append(w.asked, exchange{q.Method, q.Header.Get("Range"), resp.StatusCode, resp.Header.Get("Content-Type")})
		}
		return nil
	}
	w.Server = httptest.NewServer(behind)
	t.Cleanup(w.Close)
	return w
}

// saw reports whether there was an exchange that is as wanted.
func (w *wire) saw(wanted func(exchange) bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.asked {
		if wanted(x) {
			return true
		}
	}
	return false
}
