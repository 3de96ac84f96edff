package upstream

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const indexType = ocispec.MediaTypeImageIndex

// a manifest whose bytes are not what re-encoding would make of it
var manifestBytes = []byte("{ \"schemaVersion\":2,\n\t\"mediaType\":\"" + indexType + "\", \"unknown\" : [1 ,2] }\n")

// serveManifest makes o answer with a manifest and the headers given, in pairs;
// an empty value leaves the header out.
func serveManifest(o *origin, body []byte, header ...string) {
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header()["Content-Type"] = nil // not guessed
		w.Header().Set("Content-Type", indexType)
		w.Header().Set(contentDigest, string(digest.FromBytes(body)))
		for i := 0; i < len(header); i += 2 {
			w.Header()[http.CanonicalHeaderKey(header[i])] = nil
			if header[i+1] != "" {
				w.Header().Set(header[i], header[i+1])
			}
		}
		if r.Method == http.MethodGet || w.Header().Get("Content-Length") != "" {
			w.Write(body)
			return true
		}
		w.Header()["Content-Length"] = nil
		return true
	}
}

func TestResolve(t *testing.T) {
	d := digest.FromBytes(manifestBytes)
	size := fmt.Sprint(len(manifestBytes))
	for name, c := range map[string]struct {
		reference string
		header    []string
		requests  []string
	}{
		"tag by HEAD":          {"latest", []string{"Content-Length", size}, []string{"HEAD"}},
		"digest by HEAD":       {string(d), []string{"Content-Length", size}, []string{"HEAD"}},
		"digest, unnamed":      {string(d), []string{"Content-Length", size, contentDigest, ""}, []string{"HEAD"}},
		"no digest":            {"latest", []string{"Content-Length", size, contentDigest, ""}, []string{"HEAD", "GET"}},
		"malformed digest":     {"latest", []string{"Content-Length", size, contentDigest, "sha256:1234"}, []string{"HEAD", "GET"}},
		"digest not available": {"latest", []string{"Content-Length", size, contentDigest, "blake3:" + d.Encoded()}, []string{"HEAD", "GET"}},
		"no length":            {"latest", nil, []string{"HEAD", "GET"}},
		"no media type":        {"latest", []string{"Content-Length", size, "Content-Type", ""}, []string{"HEAD", "GET"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t)
			serveManifest(o, manifestBytes, c.header...)
			got, err := registry(t, o.URL).Repository("app").Resolve(t.Context(), c.reference)
			if err != nil {
				t.Fatal(err)
			}
			if got.Digest != d || got.Size != int64(len(manifestBytes)) || got.MediaType != indexType {
				t.Errorf("got %+v", got)
			}
			o.wantRequests(t, c.requests...)
		})
	}
}

func TestResolveWithoutHead(t *testing.T) {
	for _, code := range []int{http.StatusMethodNotAllowed, http.StatusNotImplemented} {
		o := newOrigin(t)
		o.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				w.WriteHeader(code)
				return true
			}
			w.Write(manifestBytes)
			return true
		}
		got, err := registry(t, o.URL).Repository("app").Resolve(t.Context(), "latest")
		if err != nil || got.Digest != digest.FromBytes(manifestBytes) {
			t.Errorf("HEAD answered %d: got %v, %v", code, got, err)
		}
	}
}

func TestResolveMissing(t *testing.T) {
	o := newOrigin(t)
	_, err := registry(t, o.URL).Repository("app").Resolve(t.Context(), "latest")
	var status *StatusError
	if !errors.Is(err, chunk.ErrNotFound) || !errors.As(err, &status) || status.Code != 404 {
		t.Errorf("error is %v", err)
	}
	o.wantRequests(t, "HEAD")
}

func TestResolveContradicted(t *testing.T) {
	o := newOrigin(t)
	serveManifest(o, manifestBytes, "Content-Length", fmt.Sprint(len(manifestBytes)))
	_, err := registry(t, o.URL).Repository("app").Resolve(t.Context(), string(digest.FromString("another")))
	if !chunk.IsCorrupt(err) {
		t.Errorf("a HEAD that names another digest gives %v", err)
	}
}

func TestManifestIsExact(t *testing.T) {
	var accept string
	o := newOrigin(t)
	serveManifest(o, manifestBytes, "Content-Type", indexType+"; charset=utf-8")
	inner := o.answer
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		accept = r.Header.Get("Accept")
		return inner(w, r)
	}
	d := digest.FromBytes(manifestBytes)
	for _, reference := range []string{"latest", string(d), string(digest.SHA512.FromBytes(manifestBytes))} {
		m, err := registry(t, o.URL).Repository("app").Manifest(t.Context(), reference)
		desc, raw := m.Descriptor, m.Bytes
		if err != nil {
			t.Fatal(err)
		}
		want := d
		if strings.Contains(reference, ":") {
			want = digest.Digest(reference)
		}
		if !bytes.Equal(raw, manifestBytes) || desc.Digest != want || desc.Size != int64(len(raw)) || desc.MediaType != indexType {
			t.Errorf("%s: got %v of %q", reference, desc, raw)
		}
	}
	for _, want := range []string{
		"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json", "*/*",
	} {
		if !strings.Contains(accept, want) {
			t.Errorf("Accept %q lacks %s", accept, want)
		}
	}
}

func TestManifestDigests(t *testing.T) {
	other := []byte("{}")
	sum256, sum512 := digest.FromBytes(manifestBytes), digest.SHA512.FromBytes(manifestBytes)
	for name, c := range map[string]struct {
		reference string
		header    digest.Digest
		want      digest.Digest // "" for wrong bytes
	}{
		"tag with sha512":             {"latest", sum512, sum512},
		"tag with nothing":            {"latest", "", sum256},
		"tag with an unknown digest":  {"latest", "blake3:" + digest.Digest(sum256.Encoded()), sum256},
		"tag with another's":          {"latest", digest.FromBytes(other), ""},
		"tag with another's sha512":   {"latest", digest.SHA512.FromBytes(other), ""},
		"digest of another":           {string(digest.FromBytes(other)), "", ""},
		"digest, header of another":   {string(sum256), digest.FromBytes(other), ""},
		"digest, sha512 in header":    {string(sum256), sum512, sum256},
		"digest, wrong other header":  {string(sum256), digest.SHA512.FromBytes(other), ""},
		"digest of another, vouched":  {string(digest.FromBytes(other)), digest.FromBytes(other), ""},
		"sha512 digest, plain header": {string(sum512), sum256, sum512},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t)
			serveManifest(o, manifestBytes, contentDigest, string(c.header))
			m, err := registry(t, o.URL).Repository("app").Manifest(t.Context(), c.reference)
			desc := m.Descriptor
			var corrupt *chunk.CorruptError
			switch {
			case c.want == "" && (!errors.As(err, &corrupt) || corrupt.Source != "upstream"):
				t.Errorf("error is %v, want the upstream to be blamed", err)
			case c.want != "" && (err != nil || desc.Digest != c.want):
				t.Errorf("got %s, %v, want %s", desc.Digest, err, c.want)
			}
		})
	}
}

func TestUnavailableAlgorithm(t *testing.T) {
	o := newOrigin(t)
	d := digest.Digest("blake3:" + strings.Repeat("0", 64))
	p := registry(t, o.URL).Repository("app")
	_, resolve := p.Resolve(t.Context(), string(d))
	_, manifest := p.Manifest(t.Context(), string(d))
	_, stat := p.Stat(t.Context(), d)
	_, get := p.Blob().Get(t.Context(), chunk.Ref{Blob: d, Total: 3, Size: 3})
	for name, err := range map[string]error{"Resolve": resolve, "Manifest": manifest, "Stat": stat, "Get": get} {
		if !errors.Is(err, digest.ErrDigestUnsupported) || !strings.Contains(err.Error(), "blake3") {
			t.Errorf("%s: %v", name, err)
		}
	}
	o.wantRequests(t)
}

func TestManifestSize(t *testing.T) {
	for name, c := range map[string]struct {
		size      int
		announced bool
		ok        bool
	}{
		"largest":              {MaxManifestSize, true, true},
		"largest, unannounced": {MaxManifestSize, false, true},
		"too large":            {MaxManifestSize + 1, true, false},
		"too large, unannounced": {
			MaxManifestSize + 1, false, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			body := bytes.Repeat([]byte(" "), c.size)
			o := newOrigin(t)
			o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
				if !c.announced {
					w.(http.Flusher).Flush()
				}
				w.Write(body)
				return true
			}
			m, err := registry(t, o.URL).Repository("app").Manifest(t.Context(), "latest")
			raw := m.Bytes
			if ok := err == nil && len(raw) == c.size; ok != c.ok {
				t.Errorf("%d bytes, error %v", len(raw), err)
			}
		})
	}
}

func TestManifestMediaType(t *testing.T) {
	for _, c := range []struct{ contentType, body, want string }{
		{"application/vnd.oci.image.manifest.v1+json", `{"mediaType":"a/b"}`, "application/vnd.oci.image.manifest.v1+json"},
		{"Application/X+JSON; charset=utf-8", `{}`, "application/x+json"},
		{"not a type; x", `{}`, "not a type"},
		{"", `{"mediaType":"` + indexType + `"}`, indexType},
		{"", `{"mediaType":"broken\r\nX: y"}`, "application/octet-stream"},
		{"", `{}`, "application/octet-stream"},
		{"", `no json`, "application/octet-stream"},
	} {
		o := newOrigin(t)
		serveManifest(o, []byte(c.body), "Content-Type", c.contentType)
		m, err := registry(t, o.URL).Repository("app").Manifest(t.Context(), "latest")
		desc := m.Descriptor
		if err != nil || desc.MediaType != c.want {
			t.Errorf("Content-Type %q and body %s give %q, %v, want %q", c.contentType, c.body, desc.MediaType, err, c.want)
		}
	}
}

func TestCutManifest(t *testing.T) {
	o := newOrigin(t)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		sendPart(w, r, manifestBytes, 10)
		return true
	}
	_, err := registry(t, o.URL).Repository("app").Manifest(t.Context(), "latest")
	if !Unreachable(err) {
		t.Errorf("a manifest that is cut gives %v", err)
	}
}

func TestEncodedAnswersAreRefused(t *testing.T) {
	content := random(100)
	ref := refsTo(t, content)[0]
	o := newOrigin(t)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		z.Write(content)
		z.Close()
		return true
	}
	p := registry(t, o.URL).Repository("app")
	_, manifest := p.Manifest(t.Context(), "latest")
	_, blob := p.Blob().Get(t.Context(), ref)
	_, raw := p.Get(t.Context(), "tags/list", nil, nil)
	for name, err := range map[string]error{"Manifest": manifest, "Blob": blob, "Get": raw} {
		if err == nil || !strings.Contains(err.Error(), "encoded") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStatusError(t *testing.T) {
	o := newOrigin(t)
	o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		for _, name := range []string{"Retry-After", "Warning", "RateLimit-Limit", "ratelimit-remaining", "Docker-RateLimit-Source", "Set-Cookie", "X-Secret"} {
			w.Header().Set(name, "v")
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusTooManyRequests)
		w.Write([]byte(`{"errors":[{"code":"TOOMANYREQUESTS","message":"session hunter2"}]}` + strings.Repeat(" ", 1<<20)))
		return true
	}
	_, err := registry(t, o.URL).Repository("app").Get(t.Context(), "tags/list", url.Values{"last": {"hunter2"}}, nil)
	var status *StatusError
	if !errors.As(err, &status) {
		t.Fatalf("error is %v", err)
	}
	if status.Method != "GET" || status.URL != o.URL+"/v2/app/tags/list" || status.Code != 429 || len(status.Body) != maxErrorBody {
		t.Errorf("got %s %s %d with %d bytes", status.Method, status.URL, status.Code, len(status.Body))
	}
	var names []string
	for name := range status.Header {
		names = append(names, name)
	}
	want := "Content-Type Docker-Ratelimit-Source Ratelimit-Limit Ratelimit-Remaining Retry-After Warning"
	if got := strings.Join(sorted(names), " "); got != want {
		t.Errorf("headers are %s, want %s", got, want)
	}
	wantNoSecret(t, err, "hunter2")
	if !strings.Contains(err.Error(), "TOOMANYREQUESTS") {
		t.Errorf("error does not tell the registry's code: %v", err)
	}
}

func TestGet(t *testing.T) {
	o := newOrigin(t)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Link", "</next>")
		w.Write([]byte(r.URL.String()))
		return true
	}
	resp, err := registry(t, o.URL).Repository("org/app").Get(t.Context(), "referrers/sha256:00", url.Values{"artifactType": {"a/b"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, resp.Body); got != "/v2/org/app/referrers/sha256:00?artifactType=a%2Fb" || resp.Header.Get("Link") != "</next>" {
		t.Errorf("got %s with Link %s", got, resp.Header.Get("Link"))
	}
}
