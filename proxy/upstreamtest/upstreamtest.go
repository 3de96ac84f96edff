// Package upstreamtest holds every proxy.Upstream to the same contract. The tests of what
// implements one call [Run]; what only one does is tested beside it.
package upstreamtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Run tests the upstreams that open returns, each with what c has and nothing else.
func Run(t *testing.T, open func(t *testing.T, c *Content) proxy.Upstream) {
	run := func(name string, test func(t *testing.T, c *Content, up proxy.Upstream)) {
		t.Run(name, func(t *testing.T) {
			c := NewContent()
			test(t, c, open(t, c))
		})
	}
	run("manifests by tag and digest", manifests)
	run("blobs in chunks", blobs)
	run("parts of blobs", parts)
	run("tags, page by page", tags)
	run("referrers", referrers)
	run("what is not there is not found", missing)
	run("algorithms that are not known", unknownAlgorithms)
	run("a context that has ended", ended)
	run("answers say where they come from", origins)
}

func manifests(t *testing.T, c *Content, up proxy.Upstream) {
	names := maps.Clone(c.Tags)
	for d := range c.Manifests {
		names[string(d)] = d
	}
	for name, d := range names {
		want := c.Manifests[d]
		r, err := up.Resolve(t.Context(), name)
		if err != nil || r.Digest != d || r.MediaType != want.MediaType || r.Size != int64(len(want.Bytes)) {
			t.Errorf("resolve %s: %+v, %v", name, r.Descriptor, err)
		}
		m, err := up.Manifest(t.Context(), name)
		if err != nil || m.Digest != d || m.MediaType != want.MediaType || m.Size != int64(len(want.Bytes)) || !bytes.Equal(m.Bytes, want.Bytes) {
			t.Errorf("manifest %s: %+v, %v", name, m.Descriptor, err)
		}
	}
}

func blobs(t *testing.T, c *Content, up proxy.Upstream) {
	for d, want := range c.Blobs {
		if n, err := up.Stat(t.Context(), d); err != nil || n != int64(len(want)) {
			t.Errorf("stat %s: %d, %v", d, n, err)
		}
		refs := grid(t, d, len(want))
		next := 0
		err := chunk.GetRun(t.Context(), up.Blob(), refs, func(ref chunk.Ref, p []byte) error {
			if next < len(refs) && ref == refs[next] && bytes.Equal(p, want[ref.Offset:ref.Offset+ref.Size]) {
				next++
			}
			return nil
		})
		if err != nil || next != len(refs) {
			t.Errorf("blob %s: %d of %d chunks, %v", d, next, len(refs), err)
		}
		last := refs[len(refs)-1]
		if p, err := up.Blob().Get(t.Context(), last); err != nil || !bytes.Equal(p, want[last.Offset:]) {
			t.Errorf("chunk %s: %d bytes, %v", last, len(p), err)
		}
		stop := errors.New("enough")
		if err := chunk.GetRun(t.Context(), up.Blob(), refs, func(chunk.Ref, []byte) error { return stop }); err != stop {
			t.Errorf("blob %s: yield's error came back as %v", d, err)
		}
		other := refs[0]
		other.Total += 100
		if other.Whole() || len(refs) == 1 {
			other.Size = min(other.Total, chunk.Size)
		}
		if _, err := up.Blob().Get(t.Context(), other); !chunk.IsCorrupt(err) {
			t.Errorf("blob %s of another size: %v", d, err)
		}
	}
}

// parts are read by ranges, of a server that knows them.
func parts(t *testing.T, c *Content, up proxy.Upstream) {
	for d, want := range c.Blobs {
		first, last := len(want)/3, len(want)-1
		resp, err := up.Get(t.Context(), "blobs/"+string(d), nil, http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", first, last)}})
		if err != nil {
			t.Errorf("part of %s: %v", d, err)
			continue
		}
		p, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case err == nil && resp.StatusCode == http.StatusOK && bytes.Equal(p, want):
		case err == nil && resp.StatusCode == http.StatusPartialContent && bytes.Equal(p, want[first:]) &&
			resp.Header.Get("Content-Range") == fmt.Sprintf("bytes %d-%d/%d", first, last, len(want)):
		default:
			t.Errorf("part of %s: %s, %d bytes, %v", d, resp.Status, len(p), err)
		}
	}
}

func tags(t *testing.T, c *Content, up proxy.Upstream) {
	for _, n := range []string{"", "1", "2", "1000"} {
		query := url.Values{}
		if n != "" {
			query.Set("n", n)
		}
		found := pages(t, up, "tags/list", query, func(page []byte) (tags []string) {
			var body struct {
				Name string
				Tags []string
			}
			if err := json.Unmarshal(page, &body); err != nil || body.Name != Name {
				t.Errorf("page %q: %v", page, err)
			}
			return body.Tags
		})
		if want := slices.Sorted(maps.Keys(c.Tags)); !slices.Equal(found, want) {
			t.Errorf("tags, %q at a time: %q, want %q", n, found, want)
		}
	}
}

func referrers(t *testing.T, c *Content, up proxy.Upstream) {
	found := pages(t, up, "referrers/"+string(c.Subject), nil, func(page []byte) (all []string) {
		var body struct {
			MediaType string
			Manifests []struct {
				Digest       digest.Digest
				MediaType    string
				ArtifactType string
				Size         int64
				Annotations  map[string]string
			}
		}
		if err := json.Unmarshal(page, &body); err != nil || body.MediaType != IndexType {
			t.Errorf("page %q: %v", page, err)
		}
		for _, m := range body.Manifests {
			want := c.Manifests[m.Digest]
			if m.Size != int64(len(want.Bytes)) || m.MediaType != want.MediaType || m.ArtifactType != want.ArtifactType || !maps.Equal(m.Annotations, want.Annotations) {
				t.Errorf("referrer %+v", m)
			}
			all = append(all, string(m.Digest))
		}
		return all
	})
	var want []string
	for d, m := range c.Manifests {
		if m.Subject == c.Subject {
			want = append(want, string(d))
		}
	}
	slices.Sort(found)
	if slices.Sort(want); !slices.Equal(found, want) || len(want) < 2 {
		t.Errorf("referrers are %q, want %q", found, want)
	}
}

// pages follows the links of a list.
func pages(t *testing.T, up proxy.Upstream, path string, query url.Values, parse func([]byte) []string) (all []string) {
	t.Helper()
	for range 100 {
		resp, err := up.Get(t.Context(), path, query, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		page, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", path, resp.Status, err)
		}
		all = append(all, parse(page)...)
		target, _, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
		if !ok {
			return all
		}
		next, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		query = next.Query()
	}
	t.Fatalf("%s has no end", path)
	return nil
}

func missing(t *testing.T, _ *Content, up proxy.Upstream) {
	none := digest.FromString("nothing has this digest")
	ref := chunk.Ref{Blob: none, Total: 10, Size: 10}
	part := chunk.Ref{Blob: none, Total: 3 * chunk.Size, Offset: chunk.Size, Size: chunk.Size}
	for what, ask := range map[string]func() error{
		"resolve tag":     func() error { _, err := up.Resolve(t.Context(), "none"); return err },
		"resolve digest":  func() error { _, err := up.Resolve(t.Context(), string(none)); return err },
		"manifest tag":    func() error { _, err := up.Manifest(t.Context(), "none"); return err },
		"manifest digest": func() error { _, err := up.Manifest(t.Context(), string(none)); return err },
		"stat":            func() error { _, err := up.Stat(t.Context(), none); return err },
		"chunk":           func() error { _, err := up.Blob().Get(t.Context(), ref); return err },
		"part":            func() error { _, err := up.Blob().Get(t.Context(), part); return err },
		"range": func() error {
			_, err := up.Get(t.Context(), "blobs/"+string(none), nil, http.Header{"Range": {"bytes=0-1"}})
			return err
		},
		"path": func() error { _, err := up.Get(t.Context(), "none/at/all", nil, nil); return err },
	} {
		if err := ask(); !errors.Is(err, chunk.ErrNotFound) || errors.Is(err, chunk.ErrDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func unknownAlgorithms(t *testing.T, _ *Content, up proxy.Upstream) {
	d := digest.Digest("blake3:" + strings.Repeat("0", 64))
	for what, ask := range map[string]func() error{
		"resolve":  func() error { _, err := up.Resolve(t.Context(), string(d)); return err },
		"manifest": func() error { _, err := up.Manifest(t.Context(), string(d)); return err },
		"stat":     func() error { _, err := up.Stat(t.Context(), d); return err },
		"chunk":    func() error { _, err := up.Blob().Get(t.Context(), chunk.Ref{Blob: d, Total: 1, Size: 1}); return err },
	} {
		if err := ask(); !errors.Is(err, digest.ErrDigestUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// ended: what comes of a caller who has left is nobody's failure.
func ended(t *testing.T, c *Content, up proxy.Upstream) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // some answers come before the end is seen
		_, manifest := up.Manifest(ctx, "v1")
		_, stat := up.Stat(ctx, c.Layer)
		_, get := up.Blob().Get(ctx, grid(t, c.Layer, len(c.Blobs[c.Layer]))[0])
		for what, err := range map[string]error{"manifest": manifest, "stat": stat, "chunk": get} {
			if err != nil && !errors.Is(err, context.Canceled) || upstream.Unreachable(err) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

func origins(t *testing.T, c *Content, up proxy.Upstream) {
	for what, ask := range map[string]func(ctx context.Context) error{
		"resolve":  func(ctx context.Context) error { _, err := up.Resolve(ctx, "v1"); return err },
		"manifest": func(ctx context.Context) error { _, err := up.Manifest(ctx, "v1"); return err },
		"stat":     func(ctx context.Context) error { _, err := up.Stat(ctx, c.Layer); return err },
		"chunk": func(ctx context.Context) error {
			_, err := up.Blob().Get(ctx, grid(t, c.Layer, len(c.Blobs[c.Layer]))[1])
			return err
		},
		"get": func(ctx context.Context) error {
			resp, err := up.Get(ctx, "tags/list", nil, nil)
			if err == nil {
				resp.Body.Close()
			}
			return err
		},
	} {
		ctx, from := chunk.WithOrigin(t.Context())
		if err := ask(ctx); err != nil || from() == "" {
			t.Errorf("%s: from %q, %v", what, from(), err)
		}
	}
}

func grid(t *testing.T, d digest.Digest, size int) (refs []chunk.Ref) {
	t.Helper()
	m, err := chunk.Grid(d, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Len() {
		refs = append(refs, m.At(i))
	}
	return refs
}
