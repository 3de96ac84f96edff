package peers

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// host is what the registry is called; it resolves nowhere.
const host = "registry.test"

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// registry is a registry in memory that counts what it is asked, and that can
// change its mind about who may read.
type registry struct {
	*httptest.Server
	noRange bool // answers a range with the whole

	sent atomic.Int64 // bytes of blobs

	mu      sync.Mutex
	content map[string][]byte   // by path below /v2/
	types   map[string]string   // of manifests, by path
	private map[string]string   // by repository: bearer or basic
	rights  map[string][]string // repositories, by token or NAME:PASSWORD
	asked   map[string]int      // by METHOD PATH
	ranges  map[string][]extent // of blobs that were asked for, by path
	delay   time.Duration       // before each answer
	rate    int64               // bytes per second of all blobs, if not 0
	answer  http.HandlerFunc    // in place of the registry's own, if not nil
	budget  time.Time           // when the next byte may be sent, with a rate
}

type extent struct{ from, to int64 }

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{
		content: make(map[string][]byte), types: make(map[string]string), private: make(map[string]string),
		rights: make(map[string][]string), asked: make(map[string]int), ranges: make(map[string][]extent),
	}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.kill)
	return r
}

// kill makes the registry unreachable.
func (r *registry) kill() {
	r.CloseClientConnections()
	r.Close()
}

// set changes the registry while it is in use.
func (r *registry) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// count sums the requests that contain all of what is given.
func (r *registry) count(containing ...string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
next:
	for request, times := range r.asked {
		for _, s := range containing {
			if !strings.Contains(request, s) {
				continue next
			}
		}
		n += times
	}
	return n
}

// image is what a registry has under a tag: an index, or a manifest.
type image struct {
	repository, tag string
	top             digest.Digest // what the tag means
	manifest        digest.Digest
	blobs           map[digest.Digest][]byte // config and layers
	order           []digest.Digest
}

func (i *image) path(d digest.Digest) string { return "/v2/" + i.repository + "/blobs/" + string(d) }

func (i *image) size() (n int64) {
	for _, p := range i.blobs {
		n += int64(len(p))
	}
	return n
}

// random returns n bytes that are the same for the same seed.
func random(n int, seed byte) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// push makes an image of layers, with a config, under a tag.
func (r *registry) push(repository, tag string, layers ...[]byte) *image {
	return r.pushOf(layerType, repository, tag, layers...)
}

// pushOf is push with layers of a type.
func (r *registry) pushOf(mediaType, repository, tag string, layers ...[]byte) *image {
	img := &image{repository: repository, tag: tag, blobs: make(map[digest.Digest][]byte)}
	add := func(mediaType string, p []byte) map[string]any {
		d := digest.FromBytes(p)
		img.blobs[d] = p
		img.order = append(img.order, d)
		r.set(func() { r.content[repository+"/blobs/"+string(d)] = p })
		return map[string]any{"mediaType": mediaType, "digest": d, "size": len(p)}
	}
	config := add("application/vnd.oci.image.config.v1+json", fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","note":%q}`, repository+tag))
	var list []any
	for _, p := range layers {
		list = append(list, add(mediaType, p))
	}
	m, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": list})
	img.manifest = r.pushManifest(repository, tag, manifestType, m)
	img.top = img.manifest
	return img
}

// pushIndex makes the tag mean an index that names the image.
func (r *registry) pushIndex(img *image) {
	size := 0
	r.set(func() { size = len(r.content[img.repository+"/manifests/"+string(img.manifest)]) })
	p, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []any{
		map[string]any{"mediaType": manifestType, "digest": img.manifest, "size": size, "platform": map[string]string{"os": "linux", "architecture": "amd64"}},
	}})
	img.top = r.pushManifest(img.repository, img.tag, indexType, p)
}

func (r *registry) pushManifest(repository, tag, mediaType string, p []byte) digest.Digest {
	d := digest.FromBytes(p)
	r.set(func() {
		for _, path := range []string{repository + "/manifests/" + tag, repository + "/manifests/" + string(d)} {
			r.content[path], r.types[path] = p, mediaType
		}
	})
	return d
}

// ServeHTTP implements [http.Handler].
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	path := strings.TrimPrefix(q.URL.Path, "/v2/")
	r.mu.Lock()
	r.asked[q.Method+" "+path]++
	p, mediaType, delay, answer := r.content[path], r.types[path], r.delay, r.answer
	r.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-q.Context().Done():
		return
	}
	repository, _, _ := strings.Cut(strings.Replace(path, "/manifests/", "/blobs/", 1), "/blobs/")
	switch {
	case answer != nil:
		answer(w, q)
	case q.URL.Path == "/token":
		r.serveToken(w, q)
	case !r.admits(q, repository):
		w.Header().Set("WWW-Authenticate", r.challenge(repository))
		w.WriteHeader(http.StatusUnauthorized)
	case p == nil:
		w.WriteHeader(http.StatusNotFound)
	case mediaType != "":
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(p)))
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(p))
	default:
		r.serveBlob(w, q, path, p)
	}
}

func (r *registry) serveBlob(w http.ResponseWriter, q *http.Request, path string, p []byte) {
	if r.noRange {
		q.Header.Del("Range")
	}
	if q.Method == http.MethodGet {
		e := extent{0, int64(len(p))}
		if from, to, ok := strings.Cut(strings.TrimPrefix(q.Header.Get("Range"), "bytes="), "-"); ok {
			e.from, _ = strconv.ParseInt(from, 10, 64)
			if last, err := strconv.ParseInt(to, 10, 64); err == nil {
				e.to = last + 1
			}
		}
		r.set(func() { r.ranges[path] = append(r.ranges[path], e) })
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&sending{w, q, r}, q, "", time.Time{}, bytes.NewReader(p))
}

// sending counts bytes, and keeps to the rate.
type sending struct {
	http.ResponseWriter
	q *http.Request
	r *registry
}

func (s *sending) Write(p []byte) (int, error) {
	if s.q.Method == http.MethodGet {
		s.r.sent.Add(int64(len(p)))
	}
	select {
	case <-time.After(s.r.pace(len(p))):
	case <-s.q.Context().Done():
	}
	return s.ResponseWriter.Write(p)
}

func (r *registry) pace(n int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rate == 0 {
		return 0
	}
	if now := time.Now(); r.budget.Before(now) {
		r.budget = now
	}
	r.budget = r.budget.Add(time.Duration(int64(n) * int64(time.Second) / r.rate))
	return time.Until(r.budget)
}

// challenge is what a private repository's registry says.
func (r *registry) challenge(repository string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.private[repository] == "basic" {
		return `Basic realm="example"`
	}
	return fmt.Sprintf(`Bearer realm="http://%s/token",service="example",scope="repository:%s:pull"`, r.Listener.Addr(), repository)
}

// serveToken gives a token to whoever has a password.
func (r *registry) serveToken(w http.ResponseWriter, q *http.Request) {
	name, password, _ := q.BasicAuth()
	parts := strings.Split(q.FormValue("scope"), ":")
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(parts) < 2 || !slices.Contains(r.rights[name+":"+password], parts[1]) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token := "from-" + digest.FromString(name + password).Encoded()[:16] + "-" + parts[1]
	r.rights[token] = []string{parts[1]}
	fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, token)
}

func (r *registry) admits(q *http.Request, repository string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	scheme, given, _ := strings.Cut(q.Header.Get("Authorization"), " ")
	switch r.private[repository] {
	case "":
		return true
	case "basic":
		p, _ := base64.StdEncoding.DecodeString(given)
		return scheme == "Basic" && slices.Contains(r.rights[string(p)], repository)
	}
	return scheme == "Bearer" && slices.Contains(r.rights[given], repository)
}
