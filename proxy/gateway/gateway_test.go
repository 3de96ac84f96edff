package gateway_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	ipfs "github.com/ipfs/boxo/gateway"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/gateway"
	"github.com/granary-oci/granary/proxy/ref"
)

const (
	public, secret = "a chunk for everybody", "a chunk of a private repository"
	token          = "0123456789abcdef"
	credential     = "Bearer good"
)

// chunks are a public one, and one of private.test/app for whoever has the credential.
type chunks struct{}

func (chunks) Block(_ context.Context, d digest.Digest) ([]byte, error) {
	if d == digest.FromString(public) {
		return []byte(public), nil
	}
	return nil, fmt.Errorf("chunk %s: %w", d, chunk.ErrNotFound)
}

func (c chunks) BlockSize(ctx context.Context, d digest.Digest) (int64, error) {
	p, err := c.Block(ctx, d)
	return int64(len(p)), err
}

func (chunks) BlockFor(_ context.Context, repo ref.Repository, caller access.Caller, d digest.Digest) ([]byte, error) {
	if d == digest.FromString(secret) && repo.String() == "private.test/app" && caller.Authorization() == credential {
		return []byte(secret), nil
	}
	return nil, fmt.Errorf("chunk %s: %w", d, chunk.ErrNotFound)
}

// answered is what a gateway has counted.
type answered struct {
	status int
	n      int64
	public bool
}

func newGateway(t *testing.T) (url string, last *answered) {
	t.Helper()
	last = new(answered)
	h, err := gateway.New(gateway.Config{
		Chunks: chunks{},
		Registry: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=31536000, immutable")
			switch {
			case r.Header.Get("If-None-Match") != "":
				w.WriteHeader(http.StatusNotModified)
				return
			case strings.HasPrefix(r.URL.Path, "/v2/missing/"):
				w.WriteHeader(http.StatusNotFound)
				return
			}
			fmt.Fprintf(w, "registry %s, token %q", r.URL.Path, r.Header.Get(gateway.TokenHeader))
		}),
		DefaultHost: "docker.io",
		Shown:       func(s string) bool { return s == token },
		Limit:       func(h http.Handler) http.Handler { return h },
		Public:      func(d digest.Digest) bool { return d == digest.FromString(public) },
		Answered:    func(status int, n int64, public bool) { *last = answered{status, n, public} },
	})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL, last
}

func ask(t *testing.T, method, url string, header ...string) (*http.Response, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func cidOf(t *testing.T, s string) string {
	t.Helper()
	c, err := blocks.CID(digest.FromString(s))
	if err != nil {
		t.Fatal(err)
	}
	return c.String()
}

func TestAChunkIsAnsweredForGood(t *testing.T) {
	url, last := newGateway(t)
	at := url + "/ipfs/" + cidOf(t, public)
	for name, q := range map[string][]string{"?format=raw": nil, "": {"Accept", "text/html, application/vnd.ipld.raw;q=0.5"}, "?format=raw&filename=x.html": nil} {
		resp, body := ask(t, http.MethodGet, at+name, q...)
		h := resp.Header
		if resp.StatusCode != http.StatusOK || body != public || h.Get("Content-Type") != "application/vnd.ipld.raw" || h.Get("Etag") == "" ||
			!strings.Contains(h.Get("Cache-Control"), "immutable") || !strings.Contains(h.Get("Cache-Control"), "public") ||
			h.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(h.Get("Content-Disposition"), `attachment; filename="`+cidOf(t, public)+`.bin"`) {
			t.Errorf("GET %s: %s %q %v", name, resp.Status, body, h)
		}
		if (*last != answered{http.StatusOK, int64(len(public)), true}) {
			t.Errorf("counted %+v", *last)
		}
		if resp, _ := ask(t, http.MethodGet, at+"?format=raw", "If-None-Match", h.Get("Etag")); resp.StatusCode != http.StatusNotModified ||
			resp.Header.Get("Etag") != h.Get("Etag") || resp.Header.Get("Cache-Control") != h.Get("Cache-Control") {
			t.Errorf("if it has changed: %s %v", resp.Status, resp.Header)
		}
	}
	resp, body := ask(t, http.MethodHead, at+"?format=raw")
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(public)) || body != "" || last.n != 0 {
		t.Errorf("HEAD: %s %v", resp.Status, resp.Header)
	}
	if resp, body := ask(t, http.MethodGet, at+"?format=raw", "Range", "bytes=2-6"); resp.StatusCode != http.StatusPartialContent || body != public[2:7] {
		t.Errorf("a range: %s %q", resp.Status, body)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		if resp, _ := ask(t, method, at+"?format=raw", "Cache-Control", "only-if-cached"); resp.StatusCode != http.StatusOK {
			t.Errorf("%s if it is here: %s", method, resp.Status)
		}
		if resp, body := ask(t, method, url+"/ipfs/bafkqaaa?format=raw"); resp.StatusCode != http.StatusOK || body != "" {
			t.Errorf("%s of the probe: %s", method, resp.Status)
		}
	}
}

// TestNothingElseIsThere: what is private or absent is answered in the same way, which no cache keeps.
func TestNothingElseIsThere(t *testing.T) {
	url, _ := newGateway(t)
	raw := "?format=raw"
	hidden, absent, here := "/ipfs/"+cidOf(t, secret), "/ipfs/"+cidOf(t, "nothing"), "/ipfs/"+cidOf(t, public)
	for _, c := range []struct {
		path   string
		header []string
		status int
	}{
		{absent + raw, nil, 404},
		{hidden + raw, nil, 404},
		{hidden + raw, []string{gateway.TokenHeader, token}, 404},
		{hidden + raw, []string{"Authorization", credential}, 404},
		{hidden + raw, []string{"Authorization", credential, gateway.RepositoryHeader, "private.test/app"}, 404}, // without a token
		{hidden + raw, []string{"Authorization", credential, gateway.TokenHeader, token}, 404},
		{hidden + raw, []string{gateway.RepositoryHeader, "private.test/app", gateway.TokenHeader, token}, 404},
		{hidden + raw, []string{"Authorization", "Bearer bad", gateway.RepositoryHeader, "private.test/app", gateway.TokenHeader, token}, 404},
		{hidden + raw, []string{"Authorization", credential, gateway.RepositoryHeader, "private.test/other", gateway.TokenHeader, token}, 404},
		{hidden + raw, []string{"Authorization", credential, gateway.RepositoryHeader, "private.test/app", gateway.TokenHeader, "wrong"}, 403},
		{hidden + raw, []string{"If-None-Match", `"` + cidOf(t, secret) + `.raw"`}, 404},
		{hidden + raw, []string{"If-None-Match", "*"}, 404},
		{hidden + raw, []string{"Cache-Control", "only-if-cached"}, 412},
		{absent + raw, []string{"Cache-Control", "only-if-cached"}, 412},
		{here + raw, []string{gateway.TokenHeader, token, gateway.RepositoryHeader, "NO/NAME"}, 400},
		{here + raw, []string{gateway.TokenHeader, token, gateway.RepositoryHeader, "a/b/../c"}, 400},
		{here, nil, 406},
		{here + "?format=car", nil, 406},
		{here + "?format=raw&format=car", nil, 406},
		{here, []string{"Accept", "application/vnd.ipld.car"}, 406},
		{here + "/file" + raw, nil, 400},
		{here + "/" + raw, nil, 400},
		{"/ipfs/nonsense" + raw, nil, 400},
		{"/ipfs/" + raw, nil, 400},
		{"/ipfs/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG" + raw, nil, 400},
		{"/ipfs/bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi" + raw, nil, 404}, // a directory
		{"/ipfs/" + strings.Repeat("b", 2000) + raw, nil, 414},
		{"/ipns/example.com" + raw, nil, 404},
		{"/", nil, 404},
		{"/v2/", nil, 404},
		{"/v2/app/blobs/sha256:" + strings.Repeat("0", 64), nil, 404},
		{"/v2/", []string{gateway.TokenHeader, "wrong"}, 403},
		{"/v2/", []string{gateway.TokenHeader, ""}, 403},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			resp, body := ask(t, method, url+c.path, c.header...)
			if resp.StatusCode != c.status || !strings.Contains(resp.Header.Get("Cache-Control"), "no-store") || resp.Header.Get("Etag") != "" || strings.Contains(body, "private") {
				t.Errorf("%s %.100s %q: %s %q %v", method, c.path, c.header, resp.Status, body, resp.Header)
			}
		}
	}
	_, one := ask(t, http.MethodGet, url+absent+raw)
	_, other := ask(t, http.MethodGet, url+hidden+raw)
	if strings.ReplaceAll(one, cidOf(t, "nothing"), "") != strings.ReplaceAll(other, cidOf(t, secret), "") {
		t.Errorf("what is absent: %q, and what is private: %q", one, other)
	}
	if resp, _ := ask(t, http.MethodPut, url+here+raw); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %s", resp.Status)
	}
}

// TestAStockClientReads with what boxo has for reading gateways.
func TestAStockClientReads(t *testing.T) {
	url, _ := newGateway(t)
	store, err := ipfs.NewRemoteBlockstore([]string{url}, http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	here, absent := cid.MustParse(cidOf(t, public)), cid.MustParse(cidOf(t, secret))
	if b, err := store.Get(t.Context(), here); err != nil || string(b.RawData()) != public {
		t.Errorf("got %v, %v", b, err)
	}
	if b, err := store.Get(t.Context(), absent); err == nil {
		t.Errorf("got %q", b.RawData())
	}
}

func TestATokenAndACredentialOpenARepository(t *testing.T) {
	url, last := newGateway(t)
	header := []string{gateway.TokenHeader, token, gateway.RepositoryHeader, "private.test/app", "Authorization", credential}
	resp, body := ask(t, http.MethodGet, url+"/ipfs/"+cidOf(t, secret)+"?format=raw", header...)
	if resp.StatusCode != http.StatusOK || body != secret || resp.Header.Get("Cache-Control") != "private, no-store" {
		t.Errorf("%s %q %v", resp.Status, body, resp.Header)
	}
	if (*last != answered{http.StatusOK, int64(len(secret)), false}) {
		t.Errorf("counted %+v", *last)
	}
	if resp, _ := ask(t, http.MethodGet, url+"/ipfs/"+cidOf(t, secret)+"?format=raw", append(header, "If-None-Match", resp.Header.Get("Etag"))...); resp.StatusCode != http.StatusNotModified || resp.Header.Get("Cache-Control") != "private, no-store" {
		t.Errorf("if it has changed: %s %v", resp.Status, resp.Header)
	}
	resp, body = ask(t, http.MethodGet, url+"/v2/app/tags/list", gateway.TokenHeader, token)
	if resp.StatusCode != http.StatusOK || body != `registry /v2/app/tags/list, token ""` || resp.Header.Get("Cache-Control") != "private, no-store" {
		t.Errorf("the registry face: %s %q %v", resp.Status, body, resp.Header)
	}
}

// TestACacheKeepsWhatNeverChanges: of the registry face, what is public and asked for by digest and in nobody's
// name, for who shows the same token.
func TestACacheKeepsWhatNeverChanges(t *testing.T) {
	url, _ := newGateway(t)
	open, closed := string(digest.FromString(public)), string(digest.FromString(secret))
	for _, c := range []struct {
		path, credential string
		keeps            bool
	}{
		{"/v2/app/manifests/" + open, "", true},
		{"/v2/ghcr.io/org/app/_granary/map/" + open + "?first=0&n=256", "", true},
		{"/v2/app/manifests/" + open + "?ns=ghcr.io", "", true},
		{"/v2/app/manifests/" + open, credential, false},
		{"/v2/app/_granary/recipe/" + open, "", true},
		{"/v2/app/_granary/contents/" + open + "?chunks=1-3", "", true},
		{"/v2/app/_granary/map/" + closed, "", false},
		{"/v2/app/_granary/recipe/" + closed, "", false},
		{"/v2/app/_granary/contents/" + closed + "?chunks=1-3", "", false},
		{"/v2/app/manifests/" + closed, "", false},
		{"/v2/app/manifests/v1", "", false},
		{"/v2/app/blobs/" + open, "", false},
		{"/v2/app/_granary/toc/" + open, "", false},
		{"/v2/app/tags/list", "", false},
	} {
		header := []string{gateway.TokenHeader, token}
		if c.credential != "" {
			header = append(header, "Authorization", c.credential)
		}
		resp, body := ask(t, http.MethodGet, url+c.path, header...)
		h := resp.Header
		if resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "registry /v2/") {
			t.Errorf("%s: %s %s", c.path, resp.Status, body)
		}
		keeps := strings.HasPrefix(h.Get("Cache-Control"), "public, ") && h.Get("Vary") == "Granary-Token, Authorization"
		if keeps != c.keeps || !keeps && h.Get("Cache-Control") != "private, no-store" {
			t.Errorf("%s with %q: Cache-Control %q, Vary %q", c.path, c.credential, h.Get("Cache-Control"), h.Get("Vary"))
		}
	}
	if resp, _ := ask(t, http.MethodGet, url+"/v2/app/manifests/"+open, gateway.TokenHeader, token, "If-None-Match", `"x"`); resp.StatusCode != http.StatusNotModified || !strings.HasPrefix(resp.Header.Get("Cache-Control"), "public, ") {
		t.Errorf("if it has changed: %s %v", resp.Status, resp.Header)
	}
	if resp, _ := ask(t, http.MethodGet, url+"/v2/missing/manifests/"+open, gateway.TokenHeader, token); resp.Header.Get("Cache-Control") != "private, no-store" {
		t.Errorf("what is not there: %s %v", resp.Status, resp.Header)
	}
}
