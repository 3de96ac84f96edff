package upstreamtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
)

// Name is the repository of a [Content].
const Name = "team/app"

// Media types of manifests.
const (
	ManifestType = "application/vnd.oci.image.manifest.v1+json"
	IndexType    = "application/vnd.oci.image.index.v1+json"
)

// Content is what a repository has.
type Content struct {
	Blobs     map[digest.Digest][]byte
	Manifests map[digest.Digest]Manifest
	Tags      map[string]digest.Digest

	Layer   digest.Digest // the large one
	Subject digest.Digest // a manifest that others refer to
}

// Manifest is a manifest, and what a list of referrers says of it.
type Manifest struct {
	MediaType    string
	Bytes        []byte
	Subject      digest.Digest
	ArtifactType string
	Annotations  map[string]string
}

// NewContent returns an image in an index, an image whose digests are of SHA-512, two
// artifacts that refer to the first, and tags for some.
func NewContent() *Content {
	c := &Content{Blobs: make(map[digest.Digest][]byte), Manifests: make(map[digest.Digest]Manifest), Tags: make(map[string]digest.Digest)}
	config := c.AddBlob(digest.SHA256, []byte(`{"architecture":"amd64","os":"linux"}`))
	c.Layer = c.AddBlob(digest.SHA256, Random(3*chunk.Size+5, 1))
	small := c.AddBlob(digest.SHA256, Random(1000, 2))
	c.Subject = c.AddManifest(digest.SHA256, c.Image(config, c.Layer, small), Manifest{MediaType: ManifestType})
	index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s],"unknown":{"kept":true}}`, IndexType, c.Describe(c.Subject))
	c.Tags["v1"] = c.AddManifest(digest.SHA256, index, Manifest{MediaType: IndexType})
	c.Tags["v2"] = c.Subject
	long := c.AddBlob(digest.SHA512, Random(chunk.Size+1, 3))
	c.Tags["long"] = c.AddManifest(digest.SHA512, c.Image(config, long), Manifest{MediaType: ManifestType})
	for i, kind := range []string{"application/example.sbom", "application/example.signature"} {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":%s,"layers":[%s],"subject":%s,"annotations":{"number":"%d"}}`,
			ManifestType, kind, c.Describe(config), c.Describe(small), c.Describe(c.Subject), i)
		c.AddManifest(digest.SHA256, body, Manifest{
			MediaType: ManifestType, Subject: c.Subject, ArtifactType: kind, Annotations: map[string]string{"number": fmt.Sprint(i)},
		})
	}
	return c
}

// AddBlob adds a blob.
func (c *Content) AddBlob(a digest.Algorithm, p []byte) digest.Digest {
	d := a.FromBytes(p)
	c.Blobs[d] = p
	return d
}

// AddManifest adds a manifest, of which m says the rest.
func (c *Content) AddManifest(a digest.Algorithm, p []byte, m Manifest) digest.Digest {
	d := a.FromBytes(p)
	m.Bytes = p
	c.Manifests[d] = m
	return d
}

// Image returns the manifest of an image that is made of blobs.
func (c *Content) Image(config digest.Digest, layers ...digest.Digest) []byte {
	all := make([]string, len(layers))
	for i, d := range layers {
		all[i] = c.Describe(d)
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, ManifestType, c.Describe(config), strings.Join(all, ","))
}

// Describe returns the descriptor of a blob or manifest, with these annotations in pairs.
func (c *Content) Describe(d digest.Digest, annotations ...string) string {
	mediaType, size := "application/octet-stream", len(c.Blobs[d])
	if m, ok := c.Manifests[d]; ok {
		mediaType, size = m.MediaType, len(m.Bytes)
	}
	s := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d`, mediaType, d, size)
	if len(annotations) == 2 {
		s += fmt.Sprintf(`,"annotations":{%q:%q}`, annotations[0], annotations[1])
	}
	return s + "}"
}

// Random returns n bytes that seed decides.
func Random(n int, seed byte) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// refName is the annotation that names an image in a layout.
const refName = "org.opencontainers.image.ref.name"

// WriteLayout writes what c has as an image layout whose tags have the full name of the
// repository of host, or none with host "". Referrers are entries without a name.
func (c *Content) WriteLayout(t testing.TB, dir, host string) {
	t.Helper()
	for d, p := range c.Blobs {
		WriteBlob(t, dir, d, p)
	}
	var entries []string
	for tag, d := range c.Tags {
		name := tag
		if host != "" {
			name = host + "/" + Name + ":" + tag
		}
		entries = append(entries, c.Describe(d, refName, name))
	}
	slices.Sort(entries)
	for d, m := range c.Manifests {
		WriteBlob(t, dir, d, m.Bytes)
		if m.Subject != "" {
			entries = append(entries, c.Describe(d))
		}
	}
	WriteIndex(t, dir, entries...)
}

// WriteBlob puts a blob into the place where a layout has it.
func WriteBlob(t testing.TB, dir string, d digest.Digest, p []byte) {
	t.Helper()
	write(t, filepath.Join(dir, "blobs", string(d.Algorithm()), d.Encoded()), p)
}

// WriteIndex makes a layout of dir, whose index has the entries.
func WriteIndex(t testing.TB, dir string, entries ...string) {
	t.Helper()
	write(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write(t, filepath.Join(dir, "index.json"), fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[%s]}`, strings.Join(entries, ",")))
}

// write replaces a file as a whole.
func write(t testing.TB, path string, p []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", p, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// ServeHTTP answers as a registry does that has what c has, in [Name].
func (c *Content) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req, err := ref.ParsePath(r.URL.Path, nil, "registry.test")
	if err != nil || req.Repository.Name != Name {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	d := req.Digest
	if req.Tag != "" {
		d = c.Tags[req.Tag]
	}
	blob, isBlob := c.Blobs[d]
	m, isManifest := c.Manifests[d]
	switch {
	case req.Kind == ref.Blob && isBlob:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	case req.Kind == ref.Manifest && isManifest:
		w.Header().Set("Content-Type", m.MediaType)
		w.Header().Set("Docker-Content-Digest", string(d))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(m.Bytes))
	case req.Kind == ref.Tags:
		c.serveTags(w, r)
	case req.Kind == ref.Referrers:
		c.serveReferrers(w, d)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (c *Content) serveTags(w http.ResponseWriter, r *http.Request) {
	tags := slices.DeleteFunc(slices.Sorted(maps.Keys(c.Tags)), func(tag string) bool { return tag <= r.FormValue("last") })
	n := len(tags)
	if _, err := fmt.Sscan(r.FormValue("n"), &n); err == nil && n < len(tags) {
		tags = tags[:n]
		w.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?n=%d&last=%s>; rel="next"`, Name, n, tags[n-1]))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"name": Name, "tags": tags})
}

func (c *Content) serveReferrers(w http.ResponseWriter, of digest.Digest) {
	all := []any{}
	for d, m := range c.Manifests {
		if m.Subject == of {
			all = append(all, map[string]any{
				"mediaType": m.MediaType, "digest": d, "size": len(m.Bytes), "artifactType": m.ArtifactType, "annotations": m.Annotations,
			})
		}
	}
	w.Header().Set("Content-Type", IndexType)
	_ = json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 2, "mediaType": IndexType, "manifests": all})
}
