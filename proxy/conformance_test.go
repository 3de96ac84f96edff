package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestRanges is RFC 9110, section 14, over each composed stack, for a blob that
// is cold at the first request and warm at the second, and for a manifest.
func TestRanges(t *testing.T) {
	stacks(t, func(t *testing.T, o *origin, onDisk bool) {
		for _, size := range []int{10_000, 3<<20 + 17} {
			content := random(size, uint64(size))
			o.add("app", content)
			path := "/v2/app/blobs/" + string(digest.FromBytes(content))
			for i := range 2 {
				s := newStack(t, o, onDisk)
				if i > 0 {
					s.do(t, http.MethodGet, path)
				}
				s.checkRanges(t, path, content)
			}
		}
		s := newStack(t, o, onDisk)
		s.checkRanges(t, "/v2/app/manifests/v1", o.manifests["app:v1"])
	})
}

// checkRanges asks for content in each way that the rules tell apart.
func (s *stack) checkRanges(t *testing.T, path string, content []byte) {
	t.Helper()
	n := len(content)
	type part struct{ from, to int } // to is exclusive
	whole := part{0, n}
	etag := `"` + string(digest.FromBytes(content)) + `"`
	for _, c := range []struct {
		header []string
		status int
		parts  []part
	}{
		{nil, 200, []part{whole}},
		{[]string{"Range", "bytes=5-14"}, 206, []part{{5, 15}}},
		{[]string{"Range", "bytes=5-"}, 206, []part{{5, n}}},
		{[]string{"Range", "bytes=0-"}, 206, []part{whole}},
		{[]string{"Range", "bytes=-7"}, 206, []part{{n - 7, n}}},
		{[]string{"Range", fmt.Sprintf("bytes=-%d", n+9)}, 206, []part{whole}},
		{[]string{"Range", fmt.Sprintf("bytes=5-%d", n+9)}, 206, []part{{5, n}}},
		{[]string{"Range", fmt.Sprintf("bytes=%d-", n-1)}, 206, []part{{n - 1, n}}},
		{[]string{"Range", fmt.Sprintf("bytes=%d-", n)}, 416, nil},
		{[]string{"Range", fmt.Sprintf("bytes=%d-%d", n, n+5)}, 416, nil},
		{[]string{"Range", "bytes=500-0"}, 416, nil},
		{[]string{"Range", "bytes=-0"}, 416, nil},
		{[]string{"Range", "chars=0-1"}, 200, []part{whole}},
		{[]string{"Range", "bytes=0-1,10-19"}, 206, []part{{0, 2}, {10, 20}}},
		{[]string{"Range", "bytes=10-19,0-1,-3"}, 206, []part{{10, 20}, {0, 2}, {n - 3, n}}},
		{[]string{"Range", "bytes=5-9", "If-Range", etag}, 206, []part{{5, 10}}},
		{[]string{"Range", "bytes=5-9", "If-Range", `"other"`}, 200, []part{whole}},
		{[]string{"If-None-Match", etag}, 304, nil},
		{[]string{"If-None-Match", `"other"`}, 200, []part{whole}},
		{[]string{"Range", "bytes=5-9", "If-None-Match", etag}, 304, nil},
	} {
		resp, body := s.do(t, http.MethodGet, path, c.header...)
		if resp.StatusCode != c.status {
			t.Errorf("%s %v: %s, want %d", path, c.header, resp.Status, c.status)
			continue
		}
		if resp.Header.Get("Content-Encoding") != "" || c.status != 304 && resp.ContentLength != int64(len(body)) {
			t.Errorf("%s %v: %v, %d bytes", path, c.header, resp.Header, len(body))
		}
		switch {
		case c.status == 416:
			if resp.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", n) {
				t.Errorf("%s %v: %v", path, c.header, resp.Header)
			}
		case c.status == 304:
			if len(body) > 0 || resp.Header.Get("ETag") != etag {
				t.Errorf("%s %v: %v, %d bytes", path, c.header, resp.Header, len(body))
			}
		case len(c.parts) > 1:
			_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
			if err != nil {
				t.Fatalf("%s %v: %v", path, c.header, resp.Header)
			}
			r := multipart.NewReader(bytes.NewReader(body), params["boundary"])
			for _, want := range c.parts {
				p, err := r.NextPart()
				if err != nil {
					t.Fatalf("%s %v: %v", path, c.header, err)
				}
				got, _ := io.ReadAll(p)
				if !bytes.Equal(got, content[want.from:want.to]) || p.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", want.from, want.to-1, n) {
					t.Errorf("%s %v: part %v: %v, %d bytes", path, c.header, want, p.Header, len(got))
				}
			}
			if _, err := r.NextPart(); err != io.EOF {
				t.Errorf("%s %v: more parts than ranges", path, c.header)
			}
		default:
			want := c.parts[0]
			if !bytes.Equal(body, content[want.from:want.to]) || resp.Header.Get("ETag") != etag || resp.Header.Get("Accept-Ranges") != "bytes" {
				t.Errorf("%s %v: %d bytes, %v", path, c.header, len(body), resp.Header)
			}
			if got := resp.Header.Get("Content-Range"); c.status == 206 && got != fmt.Sprintf("bytes %d-%d/%d", want.from, want.to-1, n) {
				t.Errorf("%s %v: Content-Range: %s", path, c.header, got)
			}
		}
		head, none := s.do(t, http.MethodHead, path, c.header...)
		if len(none) > 0 || c.status != 304 && (head.StatusCode != 200 || head.ContentLength != int64(n)) {
			t.Errorf("HEAD %s %v: %s %v", path, c.header, head.Status, head.Header)
		}
	}
}

// TestThePullRules are those of distribution-spec main, "Pull", over each
// composed stack.
func TestThePullRules(t *testing.T) {
	stacks(t, func(t *testing.T, o *origin, onDisk bool) {
		layer := random(2<<20, 50)
		d := o.add("org/app", layer)
		manifest := o.manifests["org/app:v1"]
		s := newStack(t, o, onDisk)
		absent := string(digest.FromString("absent"))
		for _, c := range []struct {
			path   string
			status int
			code   string // of an error
			body   []byte
			kind   string
		}{
			{"/v2/", 200, "", []byte("{}"), "application/json"},
			{"/v2", 200, "", []byte("{}"), "application/json"},
			{"/v2/org/app/manifests/v1", 200, "", manifest, manifestType},
			{"/v2/org/app/manifests/" + string(d), 200, "", manifest, manifestType},
			{"/v2/org/app/manifests/v1?ns=origin.test", 200, "", manifest, manifestType},
			{"/v2/origin.test/org/app/manifests/v1", 200, "", manifest, manifestType},
			{"/v2/org/app/blobs/" + string(digest.FromBytes(layer)), 200, "", layer, "application/octet-stream"},
			{"/v2/org/app/manifests/none", 404, "MANIFEST_UNKNOWN", nil, ""},
			{"/v2/org/app/manifests/" + absent, 404, "MANIFEST_UNKNOWN", nil, ""},
			{"/v2/org/none/manifests/v1", 404, "MANIFEST_UNKNOWN", nil, ""},
			{"/v2/org/app/blobs/" + absent, 404, "BLOB_UNKNOWN", nil, ""},
			{"/v2/org/app/blobs/sha256:abc", 400, "DIGEST_INVALID", nil, ""},
			{"/v2/org/app/blobs/sha256", 400, "DIGEST_INVALID", nil, ""},
			{"/v2/org/app/manifests/sha256:abc", 400, "DIGEST_INVALID", nil, ""},
			{"/v2/org/app/manifests/.tag", 400, "MANIFEST_INVALID", nil, ""},
			{"/v2/Org/app/manifests/v1", 400, "NAME_INVALID", nil, ""},
			{"/v2/org//app/manifests/v1", 400, "NAME_INVALID", nil, ""},
			{"/v2/org/app/referrers/sha256:abc", 400, "DIGEST_INVALID", nil, ""},
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				resp, body := s.do(t, method, c.path)
				if resp.StatusCode != c.status {
					t.Errorf("%s %s: %s, want %d", method, c.path, resp.Status, c.status)
					continue
				}
				if length := resp.Header.Get("Content-Length"); c.body != nil && c.kind != "application/json" && length != strconv.Itoa(len(c.body)) {
					t.Errorf("%s %s: Content-Length: %s", method, c.path, length)
				}
				if c.kind != "" && resp.Header.Get("Content-Type") != c.kind {
					t.Errorf("%s %s: Content-Type: %s", method, c.path, resp.Header.Get("Content-Type"))
				}
				if strings.Contains(c.path, "/org/app/") && c.status == 200 && resp.Header.Get("Docker-Content-Digest") != string(digest.FromBytes(c.body)) {
					t.Errorf("%s %s: %v", method, c.path, resp.Header)
				}
				switch {
				case method == http.MethodHead:
					if len(body) > 0 {
						t.Errorf("HEAD %s: %d bytes", c.path, len(body))
					}
				case c.code != "":
					if code(body) != c.code || resp.Header.Get("Content-Type") != "application/json" {
						t.Errorf("GET %s: %s %v", c.path, body, resp.Header)
					}
				case !bytes.Equal(body, c.body):
					t.Errorf("GET %s: %d bytes, want %d", c.path, len(body), len(c.body))
				}
			}
		}
		if resp, _ := s.do(t, http.MethodGet, "/v2/org/app/manifests/v1?ns=origin.test"); resp.Header.Get("OCI-Namespace") != "origin.test" {
			t.Errorf("ns is not echoed: %v", resp.Header)
		}
		if resp, _ := s.do(t, http.MethodGet, "/v2/org/app/manifests/v1"); resp.Header.Get("OCI-Namespace") != "" {
			t.Errorf("a namespace that was not given: %v", resp.Header)
		}
	})
}

// TestAcceptDoesNotMatter: what is there is sent as it was pushed, and the
// upstream is always asked for every kind.
func TestAcceptDoesNotMatter(t *testing.T) {
	o := newOrigin()
	d := o.add("app", []byte("x"))
	var accepts []string
	o.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		o.set(func() { accepts = append(accepts, r.Header.Get("Accept")) })
		return false
	}
	s := newStack(t, o, true)
	for _, accept := range []string{"", "*/*", "text/html", indexType} {
		for _, reference := range []string{"v1", string(d)} {
			if resp, body := s.do(t, http.MethodGet, "/v2/app/manifests/"+reference, "Accept", accept); resp.StatusCode != 200 || !bytes.Equal(body, o.manifests["app:v1"]) {
				t.Errorf("Accept %q: %s %s", accept, resp.Status, body)
			}
		}
	}
	for _, a := range accepts {
		for _, kind := range []string{manifestType, indexType, "*/*"} {
			if !strings.Contains(a, kind) {
				t.Errorf("the upstream was asked for %q", a)
			}
		}
	}
}

// TestWritesAreUnsupported, whatever is written and where.
func TestWritesAreUnsupported(t *testing.T) {
	s := newStack(t, newOrigin(), true)
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		for _, path := range []string{"/v2/app/blobs/uploads/", "/v2/app/blobs/uploads/1?digest=x", "/v2/app/manifests/v1", "/v2/app/blobs/" + string(digest.FromString("x")), "/v2/"} {
			resp, body := s.do(t, method, path)
			if resp.StatusCode != http.StatusMethodNotAllowed || code(body) != "UNSUPPORTED" || !slices.Contains(strings.Split(resp.Header.Get("Allow"), ", "), "GET") {
				t.Errorf("%s %s: %s %s", method, path, resp.Status, body)
			}
		}
	}
	if asked := s.origin.requests("/"); len(asked) > 0 {
		t.Errorf("the upstream was asked: %v", asked)
	}
}

// TestManifestsOfAnyForm are served as they are: empty, no JSON, deeply nested.
func TestManifestsOfAnyForm(t *testing.T) {
	for _, m := range []string{"no JSON", "", "null", "[]", `"text"`, `{"layers":[null,1,{"digest":7}]}`, strings.Repeat("[", 9000), strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)} {
		o := newOrigin()
		var d digest.Digest
		o.set(func() { d = o.put("app", "v1", []byte(m)) })
		s := newStack(t, o, true)
		for range 2 {
			for _, reference := range []string{"v1", string(d)} {
				if resp, body := s.do(t, http.MethodGet, "/v2/app/manifests/"+reference); resp.StatusCode != 200 || string(body) != m {
					t.Errorf("%.20q: %s %.100q", m, resp.Status, body)
				}
			}
		}
	}
}
