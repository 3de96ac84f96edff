package proxy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// listed follows a list of tags from page to page.
func (s *stack) listed(t *testing.T, path string) (tags []string, pages int) {
	t.Helper()
	for path != "" && pages < 1000 {
		resp, body := s.do(t, http.MethodGet, path)
		var page struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(body, &page); err != nil || resp.StatusCode != http.StatusOK || page.Tags == nil {
			t.Fatalf("%s: %s %s", path, resp.Status, body)
		}
		tags = append(tags, page.Tags...)
		pages++
		path = next(t, resp)
	}
	return tags, pages
}

// next returns the relative link to the next page, or "".
func next(t *testing.T, resp *http.Response) string {
	t.Helper()
	link := resp.Header.Get("Link")
	if link == "" {
		return ""
	}
	target, ok := strings.CutSuffix(link, `>; rel="next"`)
	if !ok || !strings.HasPrefix(target, "</v2/") {
		t.Fatalf("Link: %s", link)
	}
	return target[1:]
}

func TestTags(t *testing.T) {
	for _, page := range []int{0, 3, 1000} {
		stacks(t, func(t *testing.T, o *origin, onDisk bool) {
			o.page = page
			var want []string
			o.add("app", []byte("x"))
			for i := range 25 {
				want = append(want, fmt.Sprintf("v%d", i+1))
				o.set(func() { o.tags["app"] = append([]string{want[i]}, o.tags["app"]...) })
			}
			slices.Sort(want)
			s := newStack(t, o, onDisk)
			for query, wantPages := range map[string]int{"": 1, "?n=100": 1, "?n=25": 1, "?n=24": 2, "?n=7": 4, "?n=1": 25} {
				if got, pages := s.listed(t, "/v2/app/tags/list"+query); !slices.Equal(got, want) || pages != wantPages {
					t.Errorf("%s: %v in %d pages, want %v in %d", query, got, pages, want, wantPages)
				}
			}
			for query, want := range map[string][]string{
				"?last=v7": {"v8", "v9"}, "?last=v70": {"v8", "v9"}, "?last=v9": {}, "?last=zzz": {}, "?last=": want,
				"?last=v7&n=1": {"v8"}, "?n=0": {}, "?last=v5&n=2": {"v6", "v7"},
			} {
				resp, body := s.do(t, http.MethodGet, "/v2/app/tags/list"+query)
				var page struct{ Tags []string }
				if err := json.Unmarshal(body, &page); err != nil || !slices.Equal(page.Tags, want) || page.Tags == nil {
					t.Errorf("%s: %s %s, want %v", query, resp.Status, body, want)
				}
				if query == "?n=0" && resp.Header.Get("Link") != "" {
					t.Errorf("n=0 links to %s", resp.Header.Get("Link"))
				}
			}
		})
	}
}

func TestTagsOfOtherKinds(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	o.add("secret", []byte("x"))
	o.private["secret"] = "bearer"
	o.tokens["right"] = "secret"
	s := newStack(t, o, true)
	s.wantStatus(t, 404, "/v2/absent/tags/list", "")
	s.wantStatus(t, 401, "/v2/secret/tags/list", "")
	s.wantStatus(t, 200, "/v2/secret/tags/list", "Bearer right")
	s.wantStatus(t, 401, "/v2/secret/tags/list?last=a", "Bearer wrong")
	s.wantStatus(t, 401, "/v2/secret/tags/list?last=a", "")
	for _, n := range []string{"-1", "x", "1e3", "99999999999999999999"} {
		s.wantStatus(t, 400, "/v2/app/tags/list?n="+n, "")
	}
	resp, body := s.do(t, http.MethodHead, "/v2/app/tags/list")
	if resp.StatusCode != 200 || len(body) > 0 || resp.ContentLength <= 0 {
		t.Errorf("HEAD: %s %v", resp.Status, resp.Header)
	}
	o.set(func() { o.tags["app"] = []string{"new"} })
	if got, _ := s.listed(t, "/v2/app/tags/list"); !slices.Equal(got, []string{"new"}) {
		t.Errorf("a list that is begun anew is old: %v", got)
	}
	s.upstream.Close()
	s.wantStatus(t, 502, "/v2/app/tags/list", "")
}

// refer adds manifests that refer to subject, of kinds a and b in turn.
func (o *origin) refer(repository string, subject digest.Digest, n int) (all []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range n {
		m, _ := json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": manifestType, "artifactType": "example/" + string(rune('a'+i%2)),
			"subject": map[string]any{"digest": subject}, "number": i,
		})
		d := digest.FromBytes(m)
		o.manifests[repository+"@"+string(d)] = m
		all = append(all, string(d))
	}
	return all
}

func TestReferrers(t *testing.T) {
	for _, page := range []int{0, 2} {
		stacks(t, func(t *testing.T, o *origin, onDisk bool) {
			subject, lonely := o.add("app", []byte("x")), o.add("app", []byte("y"))
			all := o.refer("app", subject, 5)
			o.page = page
			if o.noReferrers {
				o.tagReferrers("app", subject, all)
			}
			s := newStack(t, o, onDisk)
			for query, want := range map[string]int{"": 5, "?artifactType=example/a": 3, "?artifactType=example/b": 2, "?artifactType=none": 0} {
				resp, body := s.do(t, http.MethodGet, "/v2/app/referrers/"+string(subject)+query)
				var index struct {
					SchemaVersion int
					MediaType     string
					Manifests     []struct {
						Digest, ArtifactType, Unknown string
					}
				}
				if err := json.Unmarshal(body, &index); err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != indexType ||
					index.SchemaVersion != 2 || index.MediaType != indexType || len(index.Manifests) != want {
					t.Fatalf("%s: %s %v %s", query, resp.Status, resp.Header, body)
				}
				if filtered := resp.Header.Get("OCI-Filters-Applied"); (filtered == "artifactType") != (query != "") {
					t.Errorf("%s: OCI-Filters-Applied: %s", query, filtered)
				}
				for _, d := range index.Manifests {
					if !slices.Contains(all, d.Digest) || d.Unknown != "kept" || d.ArtifactType == "" {
						t.Errorf("%s: %+v", query, d)
					}
				}
			}
			for _, d := range []string{string(lonely), string(digest.FromString("absent")), string(digest.SHA512.FromString("absent"))} {
				if resp, body := s.do(t, http.MethodGet, "/v2/app/referrers/"+d); resp.StatusCode != 200 || !strings.Contains(string(body), `"manifests":[]`) {
					t.Errorf("without referrers: %s %s", resp.Status, body)
				}
			}
			s.wantStatus(t, 400, "/v2/app/referrers/sha256:x", "")
		})
	}
}

// tagReferrers keeps an index of manifests under the fallback tag.
func (o *origin) tagReferrers(repository string, subject digest.Digest, all []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var found []json.RawMessage
	for _, d := range all {
		m := o.manifests[repository+"@"+d]
		var kind struct{ ArtifactType string }
		_ = json.Unmarshal(m, &kind)
		found = append(found, descriptorOf(m, kind.ArtifactType))
	}
	index, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": found})
	o.types[string(o.put(repository, strings.ReplaceAll(string(subject), ":", "-"), index))] = indexType
}

// TestManyReferrersComeInPages: an index must stay as small as clients read.
func TestManyReferrersComeInPages(t *testing.T) {
	o := newOrigin()
	subject := o.add("app", []byte("x"))
	const n = 12_000
	o.refer("app", subject, n)
	s := newStack(t, o, true)
	seen, pages := make(map[string]bool), 0
	for path := "/v2/app/referrers/" + string(subject); path != ""; pages++ {
		resp, body := s.do(t, http.MethodGet, path)
		var index struct{ Manifests []struct{ Digest string } }
		if err := json.Unmarshal(body, &index); err != nil || len(body) > 3<<20 {
			t.Fatalf("%s: %d bytes, %v", path, len(body), err)
		}
		for _, d := range index.Manifests {
			if seen[d.Digest] {
				t.Fatalf("%s: %s comes twice", path, d.Digest)
			}
			seen[d.Digest] = true
		}
		path = next(t, resp)
	}
	if len(seen) != n || pages < 2 {
		t.Errorf("%d referrers in %d pages", len(seen), pages)
	}
	if asked := o.requests("/referrers/"); len(asked) != 1 {
		t.Errorf("the upstream was asked %d times", len(asked))
	}
}

// TestManifestsUnderOtherDigestsAndInRanges: sha512 is a digest like any other,
// and a manifest content like any other.
func TestManifestsUnderOtherDigestsAndInRanges(t *testing.T) {
	stacks(t, func(t *testing.T, o *origin, onDisk bool) {
		layer := random(3<<20+1, 30)
		o.add("app", layer)
		manifest := o.manifests["app:v1"]
		long := string(digest.SHA512.FromBytes(manifest))
		longLayer := digest.SHA512.FromBytes(layer)
		o.blobs["app@"+string(longLayer)] = layer
		s := newStack(t, o, onDisk)
		for range 2 {
			resp, body := s.do(t, http.MethodGet, "/v2/app/manifests/"+long)
			if resp.StatusCode != 200 || string(body) != string(manifest) || resp.Header.Get("Docker-Content-Digest") != long {
				t.Errorf("sha512: %s %v", resp.Status, resp.Header)
			}
			if resp, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(longLayer)); string(body) != string(layer) {
				t.Errorf("sha512 blob: %s, %d bytes", resp.Status, len(body))
			}
			resp, body = s.do(t, http.MethodGet, "/v2/app/manifests/v1", "Range", "bytes=2-5")
			if resp.StatusCode != 206 || string(body) != string(manifest[2:6]) || resp.Header.Get("Content-Range") != fmt.Sprintf("bytes 2-5/%d", len(manifest)) {
				t.Errorf("range: %s %v %q", resp.Status, resp.Header, body)
			}
			resp, body = s.do(t, http.MethodGet, "/v2/app/manifests/v1", "Range", "bytes=0-")
			if resp.StatusCode != 206 || string(body) != string(manifest) {
				t.Errorf("open range: %s %q", resp.Status, body)
			}
		}
	})
}

// TestATagIsAskedForByHead: a registry that counts GET requests of manifests
// counts one for as long as the tag stands still.
func TestATagIsAskedForByHead(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	s := newStack(t, o, true)
	for range 5 {
		s.wantStatus(t, 200, "/v2/app/manifests/v1", "")
	}
	if n := len(o.requests("GET /v2/app/manifests/")); n != 1 {
		t.Errorf("%d manifests were got", n)
	}
	if n := len(o.requests("HEAD /v2/app/manifests/v1")); n != 5 {
		t.Errorf("the tag was asked for %d times", n)
	}
}

// TestAThousandResolutionsAreOneQuestion holds the upstream's answer back until
// all have come.
func TestAThousandResolutionsAreOneQuestion(t *testing.T) {
	const n = 1000
	o := newOrigin()
	o.add("app", []byte("x"))
	release := make(chan struct{})
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			<-release
		}
		return false
	}
	s := newStack(t, o, true)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			resp, err := http.Head(s.url + "/v2/app/manifests/v1")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Error(resp.Status)
			}
		})
	}
	s.awaitRequests(n)
	close(release)
	wg.Wait()
	if got := o.heads.Load(); got != 1 {
		t.Errorf("the upstream was asked %d times", got)
	}
}
