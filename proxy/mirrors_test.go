package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/proxy/upstreamtest"
)

// client reads a repository of a registry at url.
func client(t *testing.T, url string) *upstream.Repository {
	t.Helper()
	r, err := upstream.New(upstream.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r.Repository(upstreamtest.Name)
}

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// answering is a registry that gives everything the same answer.
func answering(code int, challenge string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if challenge != "" {
			w.Header().Set("WWW-Authenticate", challenge)
		}
		w.WriteHeader(code)
	})
}

// TestUpstreams are all alike: a registry, and several places of one.
func TestUpstreams(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	for name, before := range map[string][]string{
		"registry":         nil,
		"mirror":           {serve(t, answering(404, ""))},
		"two mirrors":      {gone.URL, serve(t, answering(404, ""))},
		"private mirror":   {serve(t, answering(401, `Basic realm="mirror"`))},
		"limited mirror":   {serve(t, answering(429, ""))},
		"forbidden mirror": {serve(t, answering(403, ""))},
	} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, func(t *testing.T, c *upstreamtest.Content) proxy.Upstream {
				last := client(t, serve(t, c))
				if before == nil {
					return last
				}
				var all proxy.Mirrors
				for _, url := range before {
					all = append(all, client(t, url))
				}
				return append(all, last)
			})
		})
	}
}

// TestTheNextIsAskedOnlyThen: of two that work it is the first that is asked.
func TestTheNextIsAskedOnlyThen(t *testing.T) {
	c := upstreamtest.NewContent()
	asked := 0
	second := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	m := proxy.Mirrors{client(t, serve(t, c)), client(t, second)}
	if n, err := m.Stat(t.Context(), c.Layer); n != int64(len(c.Blobs[c.Layer])) || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	ref := chunk.Ref{Blob: c.Layer, Total: int64(len(c.Blobs[c.Layer])), Size: chunk.Size}
	if _, err := m.Blob().Get(t.Context(), ref); err != nil || asked > 0 {
		t.Errorf("%v; the second was asked %d times", err, asked)
	}
}

// TestAMirrorWithWrongBytes is passed over, where that shows at once.
func TestAMirrorWithWrongBytes(t *testing.T) {
	content := random(1000, 1)
	d := digest.FromBytes(content)
	first, second := upstreamtest.NewContent(), upstreamtest.NewContent()
	first.Blobs[d], second.Blobs[d] = random(1000, 2), content
	m := proxy.Mirrors{client(t, serve(t, first)), client(t, serve(t, second))}
	if p, err := m.Blob().Get(t.Context(), chunk.Ref{Blob: d, Total: 1000, Size: 1000}); err != nil || !bytes.Equal(p, content) {
		t.Errorf("%v", err)
	}
}

// elsewhere is a place that is no registry, and that gives everything the same answer.
type elsewhere struct{ err error }

func (e elsewhere) Resolve(context.Context, string) (upstream.Resolved, error) {
	return upstream.Resolved{}, e.err
}

func (e elsewhere) Manifest(context.Context, string) (upstream.Manifest, error) {
	return upstream.Manifest{}, e.err
}

func (e elsewhere) Stat(context.Context, digest.Digest) (int64, error) { return 0, e.err }

func (e elsewhere) Blob() chunk.Source { return blobOf(e) }

func (e elsewhere) Get(context.Context, string, url.Values, http.Header) (*http.Response, error) {
	return nil, e.err
}

type blobOf struct{ err error }

func (b blobOf) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, b.err }

// TestWhoseWordCounts when nobody has an answer: that of the registry itself, which is the
// last one among the places that are registries, and of what is behind it.
func TestWhoseWordCounts(t *testing.T) {
	lacks, broken := chunk.ErrNotFound, errors.New("a disk is on fire")
	away := &upstream.NoAnswerError{Subject: "layout", Err: errors.New("not mounted")}
	gone := httptest.NewServer(nil)
	gone.Close()
	refusing, missing := serve(t, answering(401, `Basic realm="last"`)), serve(t, answering(404, ""))
	denied := func(err error) bool {
		var said *upstream.StatusError
		return errors.As(err, &said) && said.Header.Get("Www-Authenticate") == `Basic realm="last"` && errors.Is(err, chunk.ErrDenied) && !errors.Is(err, lacks)
	}
	notFound := func(err error) bool {
		return errors.Is(err, lacks) && !errors.Is(err, chunk.ErrDenied) && !upstream.Unreachable(err)
	}
	unreachable := func(err error) bool { return upstream.Unreachable(err) && !errors.Is(err, lacks) }
	for name, c := range map[string]struct {
		places []any // URLs, and errors of places that are no registries
		want   func(error) bool
	}{
		"a mirror lacks it, the registry refuses":         {[]any{missing, refusing}, denied},
		"a mirror refuses, the registry lacks it":         {[]any{refusing, missing}, notFound},
		"a layout lacks it, the registry refuses":         {[]any{lacks, refusing}, denied},
		"the registry refuses, a layout lacks it":         {[]any{refusing, lacks}, denied},
		"a layout lacks it, the registry is away":         {[]any{lacks, gone.URL}, unreachable},
		"the registry is away, a layout lacks it":         {[]any{gone.URL, lacks}, unreachable},
		"the registry lacks it, and so does a layout":     {[]any{missing, lacks}, notFound},
		"a layout is away, the registry lacks it":         {[]any{away, missing}, notFound},
		"the registry lacks it, a layout behind is away":  {[]any{missing, away}, unreachable},
		"a layout is away, and another lacks it":          {[]any{away, lacks}, unreachable},
		"a layout lacks it, and another does":             {[]any{lacks, lacks}, notFound},
		"a layout is broken, and another lacks it":        {[]any{broken, lacks}, func(err error) bool { return errors.Is(err, broken) && !errors.Is(err, lacks) }},
		"a layout is broken, and the registry refuses it": {[]any{broken, refusing}, denied},
	} {
		t.Run(name, func(t *testing.T) {
			var m proxy.Mirrors
			for _, p := range c.places {
				switch p := p.(type) {
				case string:
					m = append(m, client(t, p))
				case error:
					m = append(m, elsewhere{p})
				}
			}
			_, resolve := m.Resolve(t.Context(), "v1")
			_, manifest := m.Manifest(t.Context(), "v1")
			_, stat := m.Stat(t.Context(), digest.FromString("x"))
			_, get := m.Get(t.Context(), "tags/list", nil, nil)
			for what, err := range map[string]error{"resolve": resolve, "manifest": manifest, "stat": stat, "get": get} {
				if !c.want(err) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

// TestWhyAPlaceWasPassedOver is told.
func TestWhyAPlaceWasPassedOver(t *testing.T) {
	m := proxy.Mirrors{elsewhere{errors.New("a disk is on fire")}, client(t, serve(t, answering(404, "")))}
	if _, err := m.Resolve(t.Context(), "v1"); err == nil || !strings.Contains(err.Error(), "404") || !strings.Contains(err.Error(), "a disk is on fire") {
		t.Errorf("%v", err)
	}
}
