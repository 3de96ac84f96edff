package trips

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The walk here is not the product's, which it is to judge.

// repository is one of a registry or of a node, by its URL: http://HOST/v2/NAME.
type repository string

var manifestTypes = []string{imageType, indexType, dockerImageType, dockerListType}

// get asks for something in the repository. It is nil if that is not there.
func (r repository) get(t *testing.T, path string) (body []byte, header http.Header) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, string(r)+"/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["Accept"] = append([]string{"*/*"}, manifestTypes...) // distribution wants them named
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, nil
	}
	return p, resp.Header
}

// tags returns what the repository says are its tags.
func (r repository) tags(t *testing.T) []string {
	t.Helper()
	var list struct{ Tags []string }
	if p, _ := r.get(t, "tags/list"); json.Unmarshal(p, &list) != nil {
		t.Fatalf("%s: the list of tags is %q", r, p)
	}
	return list.Tags
}

// resolve returns the digest of what a tag names.
func (r repository) resolve(t *testing.T, tag string) digest.Digest {
	t.Helper()
	_, header := r.get(t, "manifests/"+tag)
	return digest.Digest(header.Get("Docker-Content-Digest"))
}

// object is a manifest or a blob.
type object struct {
	path   string // below the repository
	digest digest.Digest
	bytes  []byte
	// nested says that it is referred to only from places that the specifications do not
	// know, such as a platform.
	nested bool
	// referrers are the digests and types of what the registry lists for it, by its API or its
	// tag, sorted.
	referrers []string
}

// inventory is what a repository has, or should have. Lists of referrers under tags are no
// objects: clients make these anew.
type inventory struct {
	objects map[digest.Digest]*object
	tags    map[string]digest.Digest
}

// walk finds everything that belongs to what is tagged in a repository.
func (r repository) walk(t *testing.T) *inventory {
	t.Helper()
	c := &inventory{make(map[digest.Digest]*object), make(map[string]digest.Digest)}
	lists := make(map[digest.Digest]bool)
	for _, tag := range r.tags(t) {
		c.tags[tag] = r.resolve(t, tag)
		if isList(tag) {
			lists[c.tags[tag]] = true
		}
	}
	for _, d := range c.tags {
		if !lists[d] {
			r.follow(t, c.objects, ocispec.Descriptor{MediaType: imageType, Digest: d}, false)
		}
	}
	return c
}

// isList reports whether a tag is that of a list of referrers (distribution-spec, "Referrers
// Tag Schema").
func isList(tag string) bool {
	algorithm, encoded, _ := strings.Cut(tag, "-")
	return slices.Contains([]string{"sha256", "sha512"}, algorithm) && !strings.Contains(encoded, ".")
}

// follow looks at what a descriptor refers to, and goes on from there.
func (r repository) follow(t *testing.T, found map[digest.Digest]*object, desc ocispec.Descriptor, nested bool) {
	t.Helper()
	o := found[desc.Digest]
	if o != nil && (!o.nested || nested) {
		return
	}
	if o == nil {
		o = r.fetch(t, desc)
		found[desc.Digest] = o
	}
	if o.nested = nested; !strings.HasPrefix(o.path, "manifests/") {
		return
	}
	listed := r.listed(t, o.digest)
	o.referrers = named(listed)
	for _, m := range listed {
		r.follow(t, found, m, nested)
	}
	var any map[string]any
	if json.Unmarshal(o.bytes, &any) != nil {
		t.Fatalf("%s is %q", o.path, o.bytes)
	}
	for field, value := range any {
		known := slices.Contains([]string{"config", "layers", "manifests", "subject"}, field)
		r.search(t, found, value, nested || !known)
	}
}

// search follows the descriptors in a value of JSON. What stands within one is nested.
func (r repository) search(t *testing.T, found map[digest.Digest]*object, value any, nested bool) {
	t.Helper()
	switch v := value.(type) {
	case []any:
		for _, x := range v {
			r.search(t, found, x, nested)
		}
	case map[string]any:
		mediaType, _ := v["mediaType"].(string)
		d, ok := v["digest"].(string)
		if ok {
			r.follow(t, found, ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d)}, nested)
		}
		for _, x := range v {
			r.search(t, found, x, nested || ok)
		}
	}
}

// fetch gets what a descriptor describes.
func (r repository) fetch(t *testing.T, desc ocispec.Descriptor) *object {
	t.Helper()
	kinds := []string{"blobs/", "manifests/"}
	if slices.Contains(manifestTypes, desc.MediaType) {
		slices.Reverse(kinds)
	}
	for _, kind := range kinds {
		if p, _ := r.get(t, kind+string(desc.Digest)); p != nil && desc.Digest.Algorithm().FromBytes(p) == desc.Digest {
			return &object{path: kind + string(desc.Digest), digest: desc.Digest, bytes: p}
		}
	}
	t.Fatalf("%s has no %s (%s)", r, desc.Digest, desc.MediaType)
	return nil
}

// listed returns what refers to a manifest, by the registry's API or else by its tag.
func (r repository) listed(t *testing.T, d digest.Digest) []ocispec.Descriptor {
	t.Helper()
	p, _ := r.get(t, "referrers/"+string(d))
	if p == nil {
		p, _ = r.get(t, "manifests/"+listTag(d))
	}
	if p == nil {
		return nil
	}
	var list ocispec.Index
	if err := json.Unmarshal(p, &list); err != nil {
		t.Fatalf("%s: the referrers of %s are %s", r, d, p)
	}
	return list.Manifests
}

// listTag is the tag of the list of what refers to a manifest.
func listTag(d digest.Digest) string {
	return string(d.Algorithm()) + "-" + d.Encoded()[:64]
}

// compare compares what is in a repository with what should be. What absent names must not be
// there, for then the reason that is given for it is none any more.
func (r repository) compare(t *testing.T, want *inventory, absent func(*object) bool) {
	t.Helper()
	var wrong []string
	for _, o := range want.objects {
		p, _ := r.get(t, o.path)
		if gone := absent(o); gone && p != nil || !gone && (p == nil || !bytes.Equal(p, o.bytes)) {
			wrong = append(wrong, fmt.Sprintf("%s (should be there: %v) has %d bytes, not those of %.60q", o.path, !gone, len(p), o.bytes))
		}
	}
	slices.Sort(wrong)
	if len(wrong) > 0 {
		t.Errorf("%s, %d of %d:\n%s", r, len(wrong), len(want.objects), strings.Join(wrong[:min(len(wrong), 20)], "\n"))
	}
}

// compareTags compares what tags name, but for those that are left out.
func (r repository) compareTags(t *testing.T, want *inventory, except func(tag string) bool) {
	t.Helper()
	for tag, d := range want.tags {
		if got := r.resolve(t, tag); got != d && !except(tag) {
			t.Errorf("%s:%s is %s, not %s", r, tag, got, d)
		}
	}
}

// compareReferrers compares what the repository says refers to things with what should.
func (r repository) compareReferrers(t *testing.T, want *inventory) {
	t.Helper()
	for _, o := range want.objects {
		if all := named(r.listed(t, o.digest)); !slices.Equal(all, o.referrers) {
			t.Errorf("%s: %q refer to %s, not %q", r, all, o.digest, o.referrers)
		}
	}
}

// named returns the digests and types of manifests in a list, sorted.
func named(list []ocispec.Descriptor) (all []string) {
	for _, m := range list {
		all = append(all, string(m.Digest)+" "+m.ArtifactType)
	}
	slices.Sort(all)
	return all
}

// same compares everything.
func (r repository) same(t *testing.T, want *inventory) {
	t.Helper()
	r.compare(t, want, func(*object) bool { return false })
	r.compareReferrers(t, want)
	r.compareTags(t, want, func(string) bool { return false })
}
