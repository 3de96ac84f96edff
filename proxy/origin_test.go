package proxy_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/ref"
)

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
)

// origin is a registry in memory, which can misbehave.
type origin struct {
	noRange     bool  // answers ranges with the whole
	noReferrers bool  // does not know the referrers API
	cutAt       int64 // ends the connection after so many bytes of each body, if not 0
	page        int   // tags and referrers to a page, if not 0
	// answer is asked first, if not nil; false leaves the request to the registry.
	answer func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	blobs     map[string][]byte   // by repository@digest
	manifests map[string][]byte   // by repository:tag and repository@digest
	types     map[string]string   // of manifests, by digest, if not manifestType
	tags      map[string][]string // by repository, in any order
	private   map[string]string   // repositories: basic, bearer
	tokens    map[string]string   // the repository that a token is good for
	asked     []string            // METHOD path

	gets  atomic.Int64  // of blobs
	heads atomic.Int64  // of manifests
	sent  atomic.Int64  // bytes of blobs
	gate  chan struct{} // if not nil, blobs wait for it after the first half MiB
}

const username, password = "user", "hunter2"

func basic(password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}

func newOrigin() *origin {
	return &origin{
		blobs: make(map[string][]byte), manifests: make(map[string][]byte), types: make(map[string]string),
		tags: make(map[string][]string), private: make(map[string]string), tokens: make(map[string]string),
	}
}

// set changes the registry while it is in use.
func (o *origin) set(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
}

// requests returns those that contain a string.
func (o *origin) requests(containing string) (found []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.asked {
		if strings.Contains(r, containing) {
			found = append(found, r)
		}
	}
	return found
}

// add makes an image of blobs in a repository, under the tag v1.
func (o *origin) add(repository string, blobs ...[]byte) digest.Digest {
	return o.addManifest(repository, nil, blobs...)
}

// addConfigured is add of an image with a configuration.
func (o *origin) addConfigured(repository, config string, blobs ...[]byte) digest.Digest {
	return o.addManifest(repository, map[string]any{"config": o.blob(repository, "application/vnd.oci.image.config.v1+json", []byte(config))}, blobs...)
}

func (o *origin) addManifest(repository string, fields map[string]any, blobs ...[]byte) digest.Digest {
	var layers []any
	for _, b := range blobs {
		layers = append(layers, o.blob(repository, "application/vnd.oci.image.layer.v1.tar", b))
	}
	manifest := map[string]any{"schemaVersion": 2, "mediaType": manifestType, "layers": layers, "unknown": map[string]any{"kept": true}}
	maps.Copy(manifest, fields)
	m, _ := json.Marshal(manifest)
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.put(repository, "v1", m)
}

// blob stores a blob, and returns its descriptor.
func (o *origin) blob(repository, mediaType string, p []byte) any {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := digest.FromBytes(p)
	o.blobs[repository+"@"+string(d)] = p
	return map[string]any{"mediaType": mediaType, "digest": d, "size": len(p)}
}

// put stores a manifest under a tag; o.mu is held.
func (o *origin) put(repository, tag string, m []byte) digest.Digest {
	d := digest.FromBytes(m)
	for _, d := range []digest.Digest{d, digest.SHA512.FromBytes(m)} {
		o.manifests[repository+"@"+string(d)] = m
	}
	o.manifests[repository+":"+tag] = m
	if !slices.Contains(o.tags[repository], tag) {
		o.tags[repository] = append(o.tags[repository], tag)
	}
	return d
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.asked = append(o.asked, r.Method+" "+r.URL.RequestURI())
	answer := o.answer
	o.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	if r.URL.Path == "/token" {
		o.serveToken(w, r)
		return
	}
	req, err := ref.ParsePath(r.URL.Path, nil, "origin")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !o.admits(r, req.Repository.Name) {
		w.Header().Set("WWW-Authenticate", o.challenge(r.Host, req.Repository.Name))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`)
		return
	}
	o.mu.Lock()
	key := req.Repository.Name + ":" + req.Tag
	if req.Digest != "" {
		key = req.Repository.Name + "@" + string(req.Digest)
	}
	blob, manifest := o.blobs[key], o.manifests[key]
	o.mu.Unlock()
	switch {
	case req.Kind == ref.Manifest && manifest != nil:
		o.serveManifest(w, r, req.Digest, manifest)
	case req.Kind == ref.Blob && blob != nil:
		o.serveBlob(w, r, blob)
	case req.Kind == ref.Tags:
		o.serveTags(w, r, req.Repository.Name)
	case req.Kind == ref.Referrers && !o.noReferrers:
		o.serveReferrers(w, r, req)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// challenge is what a private repository's registry says.
func (o *origin) challenge(registry, repository string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.private[repository] == "basic" {
		return `Basic realm="example"`
	}
	return `Bearer realm="http://` + registry + `/token",service="example",scope="repository:` + repository + `:pull"`
}

// serveToken gives a token to whoever has the password.
func (o *origin) serveToken(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != basic(password) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	repository := strings.Split(r.FormValue("scope"), ":")[1]
	o.set(func() { o.tokens["for-"+repository] = repository })
	fmt.Fprintf(w, `{"token":"for-%s","expires_in":300}`, repository)
}

func (o *origin) admits(r *http.Request, repository string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch o.private[repository] {
	case "":
		return true
	case "basic":
		return scheme+" "+token == basic(password)
	}
	return scheme == "Bearer" && o.tokens[token] == repository
}

func (o *origin) serveManifest(w http.ResponseWriter, r *http.Request, asked digest.Digest, manifest []byte) {
	if r.Method == http.MethodHead {
		o.heads.Add(1)
	}
	d := digest.FromBytes(manifest)
	w.Header().Set("Content-Type", manifestType)
	o.mu.Lock()
	if t := o.types[string(d)]; t != "" {
		w.Header().Set("Content-Type", t)
	}
	o.mu.Unlock()
	if asked != "" {
		d = asked
	}
	w.Header().Set("Docker-Content-Digest", string(d))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(manifest))
}

func (o *origin) serveBlob(w http.ResponseWriter, r *http.Request, blob []byte) {
	if o.noRange {
		r.Header.Del("Range")
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.Method == http.MethodGet {
		o.gets.Add(1)
	}
	http.ServeContent(&counting{w, o, 0}, r, "", time.Time{}, bytes.NewReader(blob))
}

// serveTags answers as docker-registry does: last without n is ignored.
func (o *origin) serveTags(w http.ResponseWriter, r *http.Request, repository string) {
	o.mu.Lock()
	tags := slices.Clone(o.tags[repository])
	o.mu.Unlock()
	if tags == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if o.page > 0 {
		slices.Sort(tags)
		tags = slices.DeleteFunc(tags, func(s string) bool { return s <= r.FormValue("last") })
		if len(tags) > o.page {
			tags = tags[:o.page]
			w.Header().Set("Link", fmt.Sprintf(`<http://%s/v2/%s/tags/list?last=%s&n=%d>; rel="next"`, r.Host, repository, tags[len(tags)-1], o.page))
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"name": repository, "tags": tags})
}

// serveReferrers lists the manifests whose subject is asked for.
func (o *origin) serveReferrers(w http.ResponseWriter, r *http.Request, req ref.Request) {
	var found []json.RawMessage
	o.mu.Lock()
	for key, m := range o.manifests {
		var m2 struct {
			ArtifactType string
			Subject      struct{ Digest digest.Digest }
		}
		_ = json.Unmarshal(m, &m2)
		if strings.HasPrefix(key, req.Repository.Name+"@sha256") && m2.Subject.Digest == req.Digest {
			found = append(found, descriptorOf(m, m2.ArtifactType))
		}
	}
	o.mu.Unlock()
	slices.SortFunc(found, func(a, b json.RawMessage) int { return bytes.Compare(a, b) })
	if from, _ := strconv.Atoi(r.FormValue("from")); o.page > 0 {
		found = found[from:]
		if len(found) > o.page {
			found = found[:o.page]
			w.Header().Set("Link", fmt.Sprintf(`</v2/%s/referrers/%s?from=%d>; rel="next"`, req.Repository.Name, req.Digest, from+o.page))
		}
	}
	w.Header().Set("Content-Type", indexType)
	_ = json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": found})
}

// descriptorOf describes a manifest, with a field that nobody knows.
func descriptorOf(m []byte, artifactType string) json.RawMessage {
	p, _ := json.Marshal(map[string]any{
		"mediaType": manifestType, "digest": digest.FromBytes(m), "size": len(m), "artifactType": artifactType, "unknown": "kept",
	})
	return p
}

type counting struct {
	http.ResponseWriter
	o *origin
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	if c.o.cutAt > 0 && c.n > c.o.cutAt {
		panic(http.ErrAbortHandler)
	}
	if c.o.gate != nil && c.n > 512<<10 {
		<-c.o.gate
	}
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	c.o.sent.Add(int64(n))
	return n, err
}
