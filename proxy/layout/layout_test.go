package layout_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/layout"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/proxy/upstreamtest"
)

const host = "registry.test"

// reports are the errors that were reported.
type reports struct {
	mu  sync.Mutex
	all []error
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, err)
}

func (r *reports) take() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

func inDir(dir string, r *reports) *layout.Layout {
	return layout.New(host, layout.NewDir(dir, r.add), r.add)
}

func onWeb(t *testing.T, url string, r *reports) *layout.Layout {
	t.Helper()
	client, err := upstream.New(upstream.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return layout.New(host, layout.NewWeb(client, url), r.add)
}

// rangeless is a server that sends the whole for a part, as Python's does.
func rangeless(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		h.ServeHTTP(w, r)
	})
}

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func registryOf(t *testing.T, c *upstreamtest.Content) proxy.Upstream {
	t.Helper()
	client, err := upstream.New(upstream.Config{URL: serve(t, c)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client.Repository(upstreamtest.Name)
}

// TestConformance runs the tests of any upstream over each place of a layout, and over
// layouts together with registries.
func TestConformance(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, dir string) proxy.Upstream{
		"directory": func(t *testing.T, dir string) proxy.Upstream {
			return inDir(dir, new(reports)).Repository(upstreamtest.Name)
		},
		"archive": func(t *testing.T, dir string) proxy.Upstream {
			return inArchive(packed(t, dir), new(reports)).Repository(upstreamtest.Name)
		},
		"web server": func(t *testing.T, dir string) proxy.Upstream {
			return onWeb(t, serve(t, http.FileServer(http.Dir(dir))), new(reports)).Repository(upstreamtest.Name)
		},
		"below a path of a web server": func(t *testing.T, dir string) proxy.Upstream {
			base := serve(t, http.StripPrefix("/some/where", http.FileServer(http.Dir(dir))))
			return onWeb(t, base+"/some/where/", new(reports)).Repository(upstreamtest.Name)
		},
		"web server without ranges": func(t *testing.T, dir string) proxy.Upstream {
			return onWeb(t, serve(t, rangeless(http.FileServer(http.Dir(dir)))), new(reports)).Repository(upstreamtest.Name)
		},
	} {
		for _, named := range []string{host, ""} {
			t.Run(fmt.Sprintf("%s, names of host %q", name, named), func(t *testing.T) {
				upstreamtest.Run(t, func(t *testing.T, c *upstreamtest.Content) proxy.Upstream {
					dir := t.TempDir()
					c.WriteLayout(t, dir, named)
					return open(t, dir)
				})
			})
		}
	}
	t.Run("sparse, before a registry", func(t *testing.T) {
		upstreamtest.Run(t, func(t *testing.T, c *upstreamtest.Content) proxy.Upstream {
			dir := t.TempDir()
			upstreamtest.WriteBlob(t, dir, c.Subject, c.Manifests[c.Subject].Bytes)
			upstreamtest.WriteIndex(t, dir)
			return proxy.Mirrors{inDir(dir, new(reports)).Repository(upstreamtest.Name), registryOf(t, c)}
		})
	})
	t.Run("behind a registry that has nothing", func(t *testing.T) {
		upstreamtest.Run(t, func(t *testing.T, c *upstreamtest.Content) proxy.Upstream {
			dir := t.TempDir()
			c.WriteLayout(t, dir, host)
			client, err := upstream.New(upstream.Config{URL: serve(t, http.NotFoundHandler())})
			if err != nil {
				t.Fatal(err)
			}
			return proxy.Mirrors{client.Repository(upstreamtest.Name), inDir(dir, new(reports)).Repository(upstreamtest.Name)}
		})
	})
	t.Run("two layouts", func(t *testing.T) {
		upstreamtest.Run(t, func(t *testing.T, c *upstreamtest.Content) proxy.Upstream {
			sparse, whole := t.TempDir(), t.TempDir()
			upstreamtest.WriteIndex(t, sparse)
			c.WriteLayout(t, whole, "")
			return proxy.Mirrors{inDir(sparse, new(reports)).Repository(upstreamtest.Name), inDir(whole, new(reports)).Repository(upstreamtest.Name)}
		})
	})
}

const (
	refName        = "org.opencontainers.image.ref.name"
	containerdName = "io.containerd.image.name"
)

// TestNames: which repository and tag a name in a layout is for.
func TestNames(t *testing.T) {
	long := "registry.test/a/b:" + strings.Repeat("t", 128)
	for _, c := range []struct {
		host, annotation, name string
		repository             string
		tags                   []string
	}{
		{host, refName, "v1", "any", []string{"v1"}},
		{host, refName, "v1", "any/other", []string{"v1"}},
		{host, refName, "registry.test/team/app:v1", "team/app", []string{"v1"}},
		{host, refName, "registry.test/team/app:v1", "app", nil},
		{host, refName, "Registry.Test:443/team/app:v1", "team/app", []string{"v1"}},
		{host, refName, "other.test/team/app:v1", "team/app", nil},
		{host, refName, "localhost/app:v1", "app", nil},
		{"localhost", refName, "localhost/app:v1", "app", []string{"v1"}},
		{host, refName, "app:v1", "app", []string{"v1"}},
		{host, refName, "app:v1", "team/app", nil},
		{host, refName, "team/app:v1", "team/app", []string{"v1"}},
		{host, refName, "team/app", "team/app", []string{"latest"}},
		{"docker.io", refName, "alpine:3", "library/alpine", []string{"3"}},
		{"docker.io", refName, "index.docker.io/alpine:3", "library/alpine", []string{"3"}},
		{"docker.io", refName, "alpine", "library/nginx", []string{"alpine"}},
		{"docker.io", containerdName, "docker.io/library/alpine:3", "library/alpine", []string{"3"}},
		{host, refName, "registry.test/team/app@sha256:" + strings.Repeat("0", 64), "team/app", nil},
		{host, refName, "sha256-" + strings.Repeat("0", 64) + ".sig", "app", []string{"sha256-" + strings.Repeat("0", 64) + ".sig"}},
		{host, refName, long, "a/b", []string{strings.Repeat("t", 128)}},
		{host, refName, long + "t", "a/b", nil},
		{host, refName, "", "app", nil},
		{host, refName, "a name of its own (stable)", "app", nil},
		{host, refName, "../../etc/passwd", "app", nil},
		{host, "unknown", "v1", "app", nil},
	} {
		content, dir := upstreamtest.NewContent(), t.TempDir()
		upstreamtest.WriteBlob(t, dir, content.Subject, content.Manifests[content.Subject].Bytes)
		upstreamtest.WriteIndex(t, dir, content.Describe(content.Subject, c.annotation, c.name))
		p := layout.New(c.host, layout.NewDir(dir, nil), nil).Repository(c.repository)
		if tags := tagsOf(t, p); !slices.Equal(tags, c.tags) {
			t.Errorf("%s is tags %q of %s/%s, want %q", c.name, tags, c.host, c.repository, c.tags)
		}
		for _, tag := range c.tags {
			if r, err := p.Resolve(t.Context(), tag); err != nil || r.Digest != content.Subject {
				t.Errorf("%s: %v, %v", c.name, r, err)
			}
		}
		if _, err := p.Resolve(t.Context(), string(content.Subject)); err != nil {
			t.Errorf("%s: by digest: %v", c.name, err)
		}
	}
}

// tagsOf returns the tags of a repository, which are not found if there are none.
func tagsOf(t *testing.T, p proxy.Upstream) []string {
	t.Helper()
	body, err := get(t.Context(), p, "tags/list")
	if errors.Is(err, chunk.ErrNotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(body, `"tags":[`)
	return strings.Split(strings.ReplaceAll(strings.TrimRight(list, "]}"), `"`, ""), ",")
}

func get(ctx context.Context, p proxy.Upstream, path string) (string, error) {
	resp, err := p.Get(ctx, path, nil, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// TestWhichNameCounts: a full name before a tag alone, and the first of those that are the
// same. containerd gives the tag of each image alone, too.
func TestWhichNameCounts(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	c.WriteLayout(t, dir, "")
	a, b := c.Tags["v1"], c.Tags["long"]
	resolve := func(repository string) digest.Digest {
		r, _ := inDir(dir, new(reports)).Repository(repository).Resolve(t.Context(), "1")
		return r.Digest
	}
	upstreamtest.WriteIndex(t, dir, c.Describe(a, refName, "1"), c.Describe(b, refName, "1"), c.Describe(b, refName, "app:1"))
	if resolve("other") != a || resolve("app") != b {
		t.Errorf("other:1 is %s, app:1 %s", resolve("other"), resolve("app"))
	}
	both := func(d digest.Digest, name string) string {
		return strings.Replace(c.Describe(d, containerdName, name), `"annotations":{`, `"annotations":{"`+refName+`":"1",`, 1)
	}
	upstreamtest.WriteIndex(t, dir, both(a, "registry.test/a:1"), both(b, "registry.test/b:1"))
	if resolve("a") != a || resolve("b") != b || resolve("c") != "" {
		t.Errorf("a:1 is %s, b:1 %s, c:1 %s", resolve("a"), resolve("b"), resolve("c"))
	}
}

// TestReferrersAsRegctlWritesThem: in an index under the fallback tag, and not twice what
// is there in both ways.
func TestReferrersAsRegctlWritesThem(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	c.WriteLayout(t, dir, "")
	other := `{"mediaType":"application/x","digest":"sha256:` + strings.Repeat("1", 64) + `","size":1,"artifactType":"a/b","unknown":"kept"}`
	blake := `{"mediaType":"application/x","digest":"blake3:` + strings.Repeat("1", 64) + `","size":1}`
	fallback := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s,"no descriptor"]}`, upstreamtest.IndexType, other, blake)
	d := c.AddManifest(digest.SHA256, fallback, upstreamtest.Manifest{MediaType: upstreamtest.IndexType})
	upstreamtest.WriteBlob(t, dir, d, fallback)
	upstreamtest.WriteIndex(t, dir, c.Describe(d, refName, ref.FallbackTag(c.Subject)))
	p := inDir(dir, new(reports)).Repository("app")
	body, err := get(t.Context(), p, "referrers/"+string(c.Subject))
	if err != nil || !strings.Contains(body, other) || !strings.Contains(body, blake) || strings.Contains(body, "no descriptor") {
		t.Errorf("%v: %s", err, body)
	}
	if _, err := get(t.Context(), p, "referrers/"+string(c.Layer)); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("referrers of something else: %v", err)
	}
}

// TestManyReferrers come in pages.
func TestManyReferrers(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	var all []string
	for i := range 30 {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"subject":%s,"annotations":{"n":"%d","long":%q}}`,
			upstreamtest.ManifestType, c.Describe(c.Subject), i, strings.Repeat("x", 100<<10))
		d := c.AddManifest(digest.SHA256, body, upstreamtest.Manifest{MediaType: upstreamtest.ManifestType})
		upstreamtest.WriteBlob(t, dir, d, body)
		all = append(all, c.Describe(d))
	}
	upstreamtest.WriteIndex(t, dir, all...)
	p := inDir(dir, new(reports)).Repository("app")
	n, pages := 0, 0
	for query := (url.Values{}); query != nil; pages++ {
		resp, err := p.Get(t.Context(), "referrers/"+string(c.Subject), query, nil)
		if err != nil || pages > 10 {
			t.Fatal(pages, err)
		}
		body, _ := io.ReadAll(resp.Body)
		if len(body) > 4<<20 {
			t.Errorf("a page of %d bytes", len(body))
		}
		n += strings.Count(string(body), `"long"`)
		query = nil
		if link := resp.Header.Get("Link"); link != "" {
			u, _ := url.Parse(strings.Trim(strings.Split(link, ";")[0], "<>"))
			query = u.Query()
		}
	}
	if n != 30 || pages < 2 {
		t.Errorf("%d referrers in %d pages", n, pages)
	}
}

// TestManifestsThatDoNotSay which type they are are what their fields show; what is no
// manifest is not found as one.
func TestManifestsThatDoNotSay(t *testing.T) {
	dir := t.TempDir()
	upstreamtest.WriteIndex(t, dir)
	p := inDir(dir, new(reports)).Repository("app")
	for body, want := range map[string]string{
		`{"schemaVersion":2,"config":{},"layers":[]}`:                          upstreamtest.ManifestType,
		`{"schemaVersion":2,"manifests":[]}`:                                   upstreamtest.IndexType,
		`{"schemaVersion":2,"mediaType":"application/x.new+json","things":[]}`: "application/x.new+json",
		`{"schemaVersion":2,"mediaType":"` + strings.Repeat("a/", 200) + `"}`:  "",
		`{"architecture":"amd64","os":"linux","config":{}}`:                    "",
		`not JSON`: "",
		``:         "",
	} {
		d := digest.FromString(body)
		upstreamtest.WriteBlob(t, dir, d, []byte(body))
		r, err := p.Resolve(t.Context(), string(d))
		if r.MediaType != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("%s: %q, %v", body, r.MediaType, err)
		}
	}
}

// TestBadLayouts: each has an error that names what is wrong, and says nothing of what is
// right.
func TestBadLayouts(t *testing.T) {
	c := upstreamtest.NewContent()
	m := c.Manifests[c.Subject].Bytes
	blob := func(dir string) string { return filepath.Join(dir, "blobs/sha256", c.Subject.Encoded()) }
	replace := func(t *testing.T, path, text string) {
		t.Helper()
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(t.TempDir(), "secret")
	replace(t, secret, string(m))
	for name, b := range map[string]struct {
		change  func(t *testing.T, dir string)
		file    string // of the error
		corrupt bool
		check   bool // it is found before anything is asked for
	}{
		"no oci-layout":  {func(_ *testing.T, dir string) { os.Remove(dir + "/oci-layout") }, "oci-layout: the file is missing", false, true},
		"no index.json":  {func(_ *testing.T, dir string) { os.Remove(dir + "/index.json") }, "index.json: the file is missing", false, true},
		"wrong version":  {func(t *testing.T, dir string) { replace(t, dir+"/oci-layout", `{"imageLayoutVersion":"2.0.0"}`) }, `oci-layout: imageLayoutVersion is "2.0.0"`, false, true},
		"no version":     {func(t *testing.T, dir string) { replace(t, dir+"/oci-layout", `1.0.0`) }, "oci-layout: ", false, true},
		"no JSON":        {func(t *testing.T, dir string) { replace(t, dir+"/index.json", `{"schemaVersion":2,`) }, "index.json: ", false, true},
		"another schema": {func(t *testing.T, dir string) { replace(t, dir+"/index.json", `{"manifests":[]}`) }, "index.json: schemaVersion is 0", false, true},
		"a list":         {func(t *testing.T, dir string) { replace(t, dir+"/index.json", `[]`) }, "index.json: ", false, true},
		"too large":      {func(t *testing.T, dir string) { replace(t, dir+"/index.json", strings.Repeat(" ", 8<<20+1)) }, "index.json: it has more than", false, true},
		"a bomb of brackets": {func(t *testing.T, dir string) {
			replace(t, dir+"/index.json", `{"schemaVersion":2,"manifests":`+strings.Repeat("[", 4<<20))
		}, "index.json: ", false, true},
		"nested lists": {func(t *testing.T, dir string) {
			replace(t, dir+"/index.json", `{"schemaVersion":2,"manifests":[`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+`]}`)
		}, "index.json: ", false, true},
		"a bomb of entries": {func(t *testing.T, dir string) {
			replace(t, dir+"/index.json", `{"schemaVersion":2,"manifests":[{}`+strings.Repeat(",{}", 2<<20)+`]}`)
		}, "index.json: it names more than 32768 manifests", false, true},
		"no list": {func(t *testing.T, dir string) { replace(t, dir+"/index.json", `{"schemaVersion":2,"manifests":{}}`) }, "index.json: manifests is no list", false, true},
		"a directory": {func(_ *testing.T, dir string) {
			os.Remove(dir + "/index.json")
			os.Mkdir(dir+"/index.json", 0o755)
		}, "index.json: it is no regular file", false, true},
		"a pipe": {func(_ *testing.T, dir string) {
			os.Remove(dir + "/index.json")
			_ = syscall.Mkfifo(dir+"/index.json", 0o644)
		}, "index.json: it is no regular file", false, true},
		"index.json outside": {func(_ *testing.T, dir string) {
			os.Remove(dir + "/index.json")
			_ = os.Symlink(secret, dir+"/index.json")
		}, "index.json: path escapes", false, true},
		"another size": {func(t *testing.T, dir string) {
			upstreamtest.WriteIndex(t, dir, strings.Replace(c.Describe(c.Subject, refName, "v2"), `"size":`, `"size":1`, 1))
		}, c.Subject.Encoded(), true, false},
		"wrong bytes":      {func(t *testing.T, dir string) { replace(t, blob(dir), strings.Replace(string(m), "2", "3", 1)) }, c.Subject.Encoded(), true, false},
		"a file that ends": {func(t *testing.T, dir string) { replace(t, blob(dir), string(m[:10])) }, c.Subject.Encoded(), true, false},
		"a malformed digest": {func(t *testing.T, dir string) {
			upstreamtest.WriteIndex(t, dir, `{"mediaType":"a/b","digest":"sha256:../../../etc/passwd","size":1,"annotations":{"`+refName+`":"v2"}}`)
		}, "index.json: digest", false, false},
		"an unknown algorithm": {func(t *testing.T, dir string) {
			upstreamtest.WriteIndex(t, dir, `{"mediaType":"a/b","digest":"blake3:`+strings.Repeat("0", 64)+`","size":1,"annotations":{"`+refName+`":"v2"}}`)
		}, `index.json: digest "blake3`, false, false},
		"a symlink out of the directory": {func(_ *testing.T, dir string) {
			os.Remove(blob(dir))
			_ = os.Symlink(secret, blob(dir))
		}, c.Subject.Encoded() + ": path escapes", false, false},
		"a directory of blobs outside": {func(_ *testing.T, dir string) {
			_ = os.Rename(dir+"/blobs", secret+"-blobs")
			_ = os.Symlink(secret+"-blobs", dir+"/blobs")
		}, c.Subject.Encoded() + ": path escapes", false, false},
		"a manifest that is a pipe": {func(_ *testing.T, dir string) {
			os.Remove(blob(dir))
			_ = syscall.Mkfifo(blob(dir), 0o644)
		}, c.Subject.Encoded() + ": it is no regular file", false, false},
		"an enormous manifest": {func(t *testing.T, dir string) {
			replace(t, blob(dir), string(m))
			_ = os.Truncate(blob(dir), 1<<30)
			upstreamtest.WriteIndex(t, dir, fmt.Sprintf(`{"mediaType":"a/b","digest":%q,"size":%d,"annotations":{%q:"v2"}}`, c.Subject, 1<<30, refName))
		}, c.Subject.Encoded() + ": the manifest has 1073741824 bytes", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.WriteLayout(t, dir, host)
			b.change(t, dir)
			l := inDir(dir, new(reports))
			err := l.Check(t.Context())
			if !b.check {
				if err != nil {
					t.Fatalf("check: %v", err)
				}
				_, err = l.Repository(upstreamtest.Name).Manifest(t.Context(), "v2")
			}
			if err == nil || !strings.Contains(err.Error(), dir+"/") || !strings.Contains(err.Error(), b.file) {
				t.Errorf("error is %v", err)
			}
			if chunk.IsCorrupt(err) != b.corrupt || errors.Is(err, chunk.ErrNotFound) || upstream.Unreachable(err) {
				t.Errorf("wrong kind of error: %v", err)
			}
			if !b.check && name != "a directory of blobs outside" && !strings.Contains(name, "digest") {
				if _, err := l.Repository(upstreamtest.Name).Stat(t.Context(), c.Layer); err != nil {
					t.Errorf("another blob: %v", err)
				}
			}
		})
	}
}
