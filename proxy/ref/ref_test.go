package ref_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/ref"
)

const (
	sha   = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	blake = "blake3:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

func code(err error) string {
	var e *ref.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"alpine":                       "docker.io/library/alpine:latest",
		"alpine:3":                     "docker.io/library/alpine:3",
		"org/app":                      "docker.io/org/app:latest",
		"index.docker.io/alpine":       "docker.io/library/alpine:latest",
		"registry-1.docker.io/org/app": "docker.io/org/app:latest",
		"ghcr.io/org/app@" + sha:       "ghcr.io/org/app@" + sha,
		"ghcr.io/org/app:v1@" + sha:    "ghcr.io/org/app:v1@" + sha,
		"localhost/app":                "localhost/app:latest",
		"localhost:5000/app:v1":        "localhost:5000/app:v1",
		"127.0.0.1:5000/a/b/c":         "127.0.0.1:5000/a/b/c:latest",
		"127.0.0.1__5000/a/b/c":        "127.0.0.1:5000/a/b/c:latest",
		"r.test__443/app":              "r.test/app:latest",
		"localhost__5000/app":          "localhost:5000/app:latest",
		"a__5000/app":                  "docker.io/a__5000/app:latest",
		"[::1]:5000/app:v1":            "[::1]:5000/app:v1",
		"GHCR.io/org/app":              "ghcr.io/org/app:latest",
		"a__b-c--d/e.f":                "docker.io/a__b-c--d/e.f:latest",
	} {
		if got, err := ref.Parse(in, "docker.io"); err != nil || got.String() != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                                   "NAME_INVALID",
		"Alpine":                             "NAME_INVALID",
		"a//b":                               "NAME_INVALID",
		"a/../b":                             "NAME_INVALID",
		"a___b":                              "NAME_INVALID",
		"alpine:":                            "MANIFEST_INVALID",
		"alpine:-x":                          "MANIFEST_INVALID",
		"alpine:" + strings.Repeat("x", 129): "MANIFEST_INVALID",
		"alpine@sha256:1234":                 "DIGEST_INVALID",
		"alpine@" + blake:                    "UNSUPPORTED",
		"ghcr.io:0/app":                      "NAME_INVALID",
		"ghcr.io__0/app":                     "NAME_INVALID",
		"ghcr.io__x/app":                     "NAME_INVALID",
		"ghcr.io__1__2/app":                  "NAME_INVALID",
		"ghcr.io:99999/app":                  "NAME_INVALID",
		"-bad.io/app":                        "NAME_INVALID",
		"[::1/app":                           "NAME_INVALID",
		"[x]:1/app":                          "NAME_INVALID",
		"user@host.io/app":                   "DIGEST_INVALID",
		strings.Repeat("a/", 200) + "a":      "NAME_INVALID",
	} {
		if got, err := ref.Parse(in, "docker.io"); code(err) != want {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
	}
}

func TestParsePath(t *testing.T) {
	repo := func(s string) ref.Repository {
		host, name, _ := strings.Cut(s, "/")
		return ref.Repository{Host: host, Name: name}
	}
	for _, c := range []struct {
		path string
		ns   []string
		want ref.Request
	}{
		{"/v2", nil, ref.Request{Kind: ref.Base}},
		{"/v2/", []string{"ghcr.io"}, ref.Request{Kind: ref.Base, Namespace: "ghcr.io"}},
		{"/v2/app/manifests/v1", nil, ref.Request{Kind: ref.Manifest, Repository: repo("default.io/app"), Tag: "v1"}},
		{"/v2/app/manifests/" + sha, nil, ref.Request{Kind: ref.Manifest, Repository: repo("default.io/app"), Digest: digest.Digest(sha)}},
		{"/v2/org/app/blobs/" + sha, []string{"ghcr.io"}, ref.Request{Kind: ref.Blob, Repository: repo("ghcr.io/org/app"), Digest: digest.Digest(sha), Namespace: "ghcr.io"}},
		{"/v2/ghcr.io/org/app/blobs/" + sha, nil, ref.Request{Kind: ref.Blob, Repository: repo("ghcr.io/org/app"), Digest: digest.Digest(sha)}},
		{"/v2/alpine/manifests/3", []string{"docker.io"}, ref.Request{Kind: ref.Manifest, Repository: repo("docker.io/library/alpine"), Tag: "3", Namespace: "docker.io"}},
		{"/v2/docker.io/alpine/manifests/3", nil, ref.Request{Kind: ref.Manifest, Repository: repo("docker.io/library/alpine"), Tag: "3"}},
		{"/v2/my.org/app/manifests/1", []string{"ghcr.io"}, ref.Request{Kind: ref.Manifest, Repository: repo("ghcr.io/my.org/app"), Tag: "1", Namespace: "ghcr.io"}},
		{"/v2/localhost:5000/app/manifests/1", nil, ref.Request{Kind: ref.Manifest, Repository: repo("localhost:5000/app"), Tag: "1"}},
		{"/v2/a/blobs/manifests/b/manifests/v1", nil, ref.Request{Kind: ref.Manifest, Repository: repo("default.io/a/blobs/manifests/b"), Tag: "v1"}},
		{"/v2/app/tags/list", nil, ref.Request{Kind: ref.Tags, Repository: repo("default.io/app")}},
		{"/v2/app/referrers/" + sha, nil, ref.Request{Kind: ref.Referrers, Repository: repo("default.io/app"), Digest: digest.Digest(sha)}},
		{"/v2/app/_granary/map/" + sha, nil, ref.Request{Kind: ref.Map, Repository: repo("default.io/app"), Digest: digest.Digest(sha)}},
		{"/v2/app/_granary/recipe/" + sha, nil, ref.Request{Kind: ref.Recipe, Repository: repo("default.io/app"), Digest: digest.Digest(sha)}},
		{"/v2/app/_granary/contents/" + sha, nil, ref.Request{Kind: ref.Contents, Repository: repo("default.io/app"), Digest: digest.Digest(sha)}},
		{"/v2/app/_granary/toc/" + sha, []string{"ghcr.io"}, ref.Request{Kind: ref.TOC, Repository: repo("ghcr.io/app"), Digest: digest.Digest(sha), Namespace: "ghcr.io"}},
		{"/v2/app/blobs/uploads/", nil, ref.Request{Kind: ref.Upload, Repository: repo("default.io/app")}},
		{"/v2/app/blobs/uploads/123", nil, ref.Request{Kind: ref.Upload, Repository: repo("default.io/app")}},
	} {
		got, err := ref.ParsePath(c.path, c.ns, "default.io")
		if c.want.Kind != ref.Base && !strings.HasPrefix(c.path, "/v2/"+got.Name+"/") {
			t.Errorf("%s: the name is %q", c.path, got.Name)
		}
		got.Name = ""
		if err != nil || got != c.want {
			t.Errorf("%s %v: %+v, %v; want %+v", c.path, c.ns, got, err, c.want)
		}
	}
	for _, c := range []struct {
		path, ns, want string
	}{
		{"/", "", "NAME_UNKNOWN"},
		{"/v1/app", "", "NAME_UNKNOWN"},
		{"/v2app", "", "NAME_UNKNOWN"},
		{"/v2/app", "", "NAME_UNKNOWN"},
		{"/v2/app/other/x", "", "NAME_UNKNOWN"},
		{"/v2//manifests/v1", "", "NAME_INVALID"},
		{"/v2/a//b/manifests/v1", "", "NAME_INVALID"},
		{"/v2/../manifests/v1", "", "NAME_INVALID"},
		{"/v2/APP/manifests/v1", "", "NAME_INVALID"},
		{"/v2/app/manifests/-v1", "", "MANIFEST_INVALID"},
		{"/v2/app/manifests/sha256:12", "", "DIGEST_INVALID"},
		{"/v2/app/blobs/v1", "", "DIGEST_INVALID"},
		{"/v2/app/map/" + sha, "", "NAME_UNKNOWN"},
		{"/v2/app/_granary/map/v1", "", "DIGEST_INVALID"},
		{"/v2/app/blobs/" + blake, "", "UNSUPPORTED"},
		{"/v2/app/manifests/v1", "http://ghcr.io", "NAME_INVALID"},
		{"/v2/app/manifests/v1", "ghcr.io/x", "NAME_INVALID"},
	} {
		var ns []string
		if c.ns != "" {
			ns = []string{c.ns}
		}
		if got, err := ref.ParsePath(c.path, ns, "default.io"); code(err) != c.want {
			t.Errorf("%s ns=%s: %+v, %v; want %s", c.path, c.ns, got, err, c.want)
		}
	}
	for _, ns := range [][]string{{""}, {"a.io", "b.io"}} {
		if _, err := ref.ParsePath("/v2/", ns, "default.io"); code(err) != "NAME_INVALID" {
			t.Errorf("ns %q: %v", ns, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"alpine", "ghcr.io/a/b:c@" + sha, "[::1]:5/x", "localhost:5000/x", "a:b:c", "@", "/", "x@" + blake} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ref.Parse(s, "docker.io")
		if err != nil {
			if code(err) == "" {
				t.Fatalf("%q: %v is not an *Error", s, err)
			}
			return
		}
		if again, err := ref.Parse(r.String(), "docker.io"); err != nil || again != r {
			t.Fatalf("%q is %q, which is %q, %v", s, r, again, err)
		}
	})
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/manifests/x", "/v2/ghcr.io/a/blobs/" + sha, "/v2/a/tags/list", "/v2/a/blobs/uploads/"} {
		f.Add(s, "")
		f.Add(s, "ghcr.io:443")
		f.Add(s, "0:443:443")
	}
	f.Fuzz(func(t *testing.T, path, ns string) {
		var list []string
		if ns != "" {
			list = []string{ns}
		}
		r, err := ref.ParsePath(path, list, "docker.io")
		if err != nil || r.Kind == ref.Base {
			return
		}
		again, err := ref.ParsePath("/v2/"+r.Repository.Name+"/tags/list", []string{r.Repository.Host}, "docker.io")
		if err != nil || again.Repository != r.Repository {
			t.Fatalf("%q: repository %q is %q, %v", path, r.Repository, again.Repository, err)
		}
	})
}

func ExampleParse() {
	r, _ := ref.Parse("alpine:3", "docker.io")
	fmt.Println(r)
	// Output: docker.io/library/alpine:3
}

func ExampleParsePath() {
	r, _ := ref.ParsePath("/v2/ghcr.io/org/app/manifests/v1", nil, "docker.io")
	fmt.Println(r.Repository.Host, r.Repository.Name, r.Tag)
	// Output: ghcr.io org/app v1
}

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"docker.io", "docker.io", true},
		{"docker.io", "docker.io.evil.example", false},
		{"*", "", true},
		{"*", "anything/at:all", true},
		{"*.example.com", "a.b.example.com", true},
		{"*.example.com", "example.com", false},
		{"docker.io/library/*", "docker.io/library/alpine:3", true},
		{"docker.io/*:latest", "docker.io/a/b:latest", true},
		{"docker.io/*:latest", "docker.io/a/b:latest-2", false},
		{"a*b*c", "abc", true},
		{"a*b*c", "aXbYbZc", true},
		{"a*b*c", "acb", false},
		{"a*a", "a", false},
		{"", "", true},
		{"", "x", false},
	} {
		if got := ref.Pattern(c.pattern).Match(c.name); got != c.want {
			t.Errorf("%q of %q: %v", c.pattern, c.name, got)
		}
	}
}

func FuzzFallbackTag(f *testing.F) {
	f.Add("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	f.Add("sha512+x:a=b_c")
	f.Fuzz(func(t *testing.T, s string) {
		d := digest.Digest(s)
		if d.Validate() != nil {
			return
		}
		if _, err := ref.ParsePath("/v2/app/manifests/"+ref.FallbackTag(d), nil, "a.test"); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	})
}
