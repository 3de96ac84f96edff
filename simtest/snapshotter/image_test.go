package snapshotter

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// bigSize is the size of app/big, in bytes.
const bigSize = 64 << 20

// image is an image of three layers: a tar+gzip with the program, an eStargz with a large
// file, and a tar+gzip above.
type image struct {
	manifest []byte
	blobs    map[string][]byte // by digest
	size     int64             // bytes of all layers
	big      []byte
}

// The layers, by names and contents. Names with a slash at their end are directories.
type file struct {
	name    string
	mode    int64
	content string
}

func makeImage(t *testing.T) *image {
	t.Helper()
	program, err := os.ReadFile(probeBinary)
	if err != nil {
		t.Fatal(err)
	}
	img := &image{blobs: make(map[string][]byte), big: make([]byte, bigSize)}
	_, _ = rand.NewChaCha8([32]byte{6}).Read(img.big)
	one := tarOf(t, []file{
		{"./", 0o755, ""}, {"app/", 0o755, ""}, {"app/probe", 0o755, string(program)},
		{"etc/", 0o755, ""}, {"etc/kept", 0o600, "kept"}, {"etc/removed", 0o644, "removed"}, {"etc/replaced", 0o644, "old"},
		{"old/", 0o755, ""}, {"old/hidden", 0o644, "hidden"}, {"old/deep/", 0o755, ""}, {"old/deep/hidden", 0o644, "hidden"},
		{"gone/", 0o755, ""}, {"gone/hidden", 0o644, "hidden"},
		{"private/", 0o700, ""}, {"private/first", 0o600, "first"}, {"dev/", 0o755, ""}, {"proc/", 0o755, ""}, {"sys/", 0o755, ""},
	})
	two := tarOf(t, []file{
		{"app/", 0o755, ""}, {"app/big", 0o644, string(img.big)}, {"etc/.wh.removed", 0, ""},
		{"old/", 0o750, ""}, {"old/.wh..wh..opq", 0, ""}, {"old/seen", 0o644, "seen"}, {".wh.gone", 0, ""},
	})
	three := tarOf(t, []file{{"private/second", 0o600, "second"}, {"etc/replaced", 0o644, "new"}})
	layers := []ocispec.Descriptor{img.addGzip(t, one), img.addStargz(t, two), img.addGzip(t, three)}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(one), img.diffID(t, layers[1]), digest.FromBytes(three)}},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/app/probe"}, Cmd: []string{"tree"}, Env: []string{"PATH=/app"}},
	}
	p, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	img.manifest, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: img.add(ocispec.MediaTypeImageConfig, p), Layers: layers,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		img.size += l.Size
	}
	return img
}

// wantTree is what a container lists, of what the layers have.
const wantTree = `/app drwxr-xr-x ""
/app/big -rw-r--r-- ""
/app/probe -rwxr-xr-x ""
/etc drwxr-xr-x ""
/etc/kept -rw------- "kept"
/etc/replaced -rw-r--r-- "new"
/old drwxr-x--- ""
/old/seen -rw-r--r-- "seen"
/private drwx------ ""
/private/first -rw------- "first"
/private/second -rw------- "second"
`

func tarOf(t *testing.T, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), ModTime: time.Unix(1e9, 0), Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (img *image) add(mediaType string, p []byte) ocispec.Descriptor {
	d := digest.FromBytes(p)
	img.blobs[string(d)] = p
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
}

func (img *image) addGzip(t *testing.T, layer []byte) ocispec.Descriptor {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(layer); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return img.add(ocispec.MediaTypeImageLayerGzip, b.Bytes())
}

func (img *image) addStargz(t *testing.T, layer []byte) ocispec.Descriptor {
	t.Helper()
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))), estargz.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	p, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	desc := img.add(ocispec.MediaTypeImageLayerGzip, p)
	desc.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: string(blob.TOCDigest())}
	return desc
}

// diffID is the digest of a layer that is not compressed.
func (img *image) diffID(t *testing.T, l ocispec.Descriptor) digest.Digest {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(img.blobs[string(l.Digest)]))
	if err != nil {
		t.Fatal(err)
	}
	d, err := digest.FromReader(z)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// registry serves an image as app:v1 to everybody, and as private:v1 to who knows the
// password.
type registry struct {
	*httptest.Server
	img  *image
	sent atomic.Int64 // bytes of layers
	dead atomic.Bool  // it answers nobody
}

const username, password = "somebody", "secret"

func startRegistry(t *testing.T, img *image) *registry {
	t.Helper()
	r := &registry{img: img}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

// ref is an image's name for containerd.
func (r *registry) ref(name string) string {
	return strings.TrimPrefix(r.URL, "http://") + "/" + name + ":v1"
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if r.dead.Load() {
		panic(http.ErrAbortHandler)
	}
	user, pass, _ := q.BasicAuth()
	private := !strings.HasPrefix(q.URL.Path, "/v2/app/") && q.URL.Path != "/v2/"
	if private && (user != username || pass != password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	what := q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]
	switch manifest := string(digest.FromBytes(r.img.manifest)); {
	case q.URL.Path == "/v2/":
	case strings.Contains(q.URL.Path, "/manifests/") && (what == "v1" || what == manifest):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", manifest)
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(r.img.manifest))
	case strings.Contains(q.URL.Path, "/blobs/") && r.img.blobs[what] != nil:
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(&counting{w, &r.sent}, q, "", time.Time{}, bytes.NewReader(r.img.blobs[what]))
	default:
		http.NotFound(w, q)
	}
}

// counting counts the bytes of bodies.
type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}
