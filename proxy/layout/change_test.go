package layout_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/layout"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/proxy/upstreamtest"
)

// TestWhereNothingIs: a directory that is missing or empty, as before something is mounted,
// and a server that does not answer are registries that cannot be reached.
func TestWhereNothingIs(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	for name, l := range map[string]*layout.Layout{
		"no directory":    inDir(t.TempDir()+"/none", new(reports)),
		"empty directory": inDir(t.TempDir(), new(reports)),
		"no server":       onWeb(t, gone.URL, new(reports)),
	} {
		ref := chunk.Ref{Blob: digest.FromString("x"), Total: 1, Size: 1}
		p := l.Repository("app")
		_, resolve := p.Resolve(t.Context(), "v1")
		_, stat := p.Stat(t.Context(), ref.Blob)
		_, blob := p.Blob().Get(t.Context(), ref)
		_, tags := p.Get(t.Context(), "tags/list", nil, nil)
		for what, err := range map[string]error{"resolve": resolve, "stat": stat, "blob": blob, "tags": tags} {
			if !upstream.Unreachable(err) || errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := inDir(file, new(reports)).Check(t.Context()); err == nil || upstream.Unreachable(err) || !strings.Contains(err.Error(), file) {
		t.Errorf("a file: %v", err)
	}
}

// TestChange: what is written into a layout is served from then on, in whatever way it is
// written, and what cannot be understood changes nothing.
func TestChange(t *testing.T) {
	c, dir := upstreamtest.NewContent(), filepath.Join(t.TempDir(), "layout")
	a, b := c.Tags["v1"], c.Tags["long"]
	c.WriteLayout(t, dir, "")
	for name, open := range map[string]func(r *reports) *layout.Layout{
		"directory":  func(r *reports) *layout.Layout { return inDir(dir, r) },
		"web server": func(r *reports) *layout.Layout { return onWeb(t, serve(t, http.FileServer(http.Dir(dir))), r) },
	} {
		t.Run(name, func(t *testing.T) {
			r := new(reports)
			p := open(r).Repository("app")
			index := filepath.Join(dir, "index.json")
			want := func(what, tag string, d digest.Digest) {
				t.Helper()
				got, err := p.Resolve(t.Context(), tag)
				if got.Digest != d || (err == nil) != (d != "") {
					t.Errorf("%s: %s is %q, %v; want %q", what, tag, got.Digest, err, d)
				}
			}
			// The second one has the same length as the first, and is written in the same instant.
			upstreamtest.WriteIndex(t, dir, c.Describe(a, refName, "1"))
			want("at first", "1", a)
			upstreamtest.WriteIndex(t, dir, c.Describe(a, refName, "2"))
			want("replaced", "2", a)
			want("replaced", "1", "")
			text, _ := os.ReadFile(index)
			for i := range len(text) {
				if err := os.WriteFile(index, text[:i], 0o644); err != nil {
					t.Fatal(err)
				}
				want("half written", "2", a)
			}
			if got := r.take(); len(got) == 0 || !strings.Contains(got[0].Error(), "index.json") {
				t.Errorf("reported: %v", got)
			}
			want("half written still", "2", a)
			if got := r.take(); len(got) != 0 {
				t.Errorf("reported again: %v", got)
			}
			upstreamtest.WriteIndex(t, dir, c.Describe(b, refName, "2"))
			want("written", "2", b)
			// Long ago, so that the time of the file is told from any other.
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(index, old, old); err != nil {
				t.Fatal(err)
			}
			want("an old file", "2", b)
			want("and again", "2", b)
			upstreamtest.WriteIndex(t, dir, c.Describe(a, refName, "3"))
			want("changed after long", "3", a)
			// Another directory takes the name.
			if err := os.Rename(dir, dir+".old-"+strings.ReplaceAll(name, " ", "-")); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Resolve(t.Context(), "3"); err == nil {
				t.Error("a layout that is gone is served")
			}
			c.WriteLayout(t, dir, "")
			want("another directory", "v1", a)
			want("another directory", "3", "")
		})
	}
}

// TestChangeInPlace: an index that is written over, with as many bytes and within the same
// tick of the file system's clock, is read again.
func TestChangeInPlace(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	c.WriteLayout(t, dir, "")
	p := inDir(dir, new(reports)).Repository("app")
	index := filepath.Join(dir, "index.json")
	for i := range 100 {
		tag, before := fmt.Sprintf("t%02d", i), fmt.Sprintf("t%02d", i-1)
		text := fmt.Sprintf(`{"schemaVersion":2,"manifests":[%s]}`, c.Describe(c.Subject, refName, tag))
		f, err := os.OpenFile(index, os.O_WRONLY|os.O_CREATE, 0o644)
		if err == nil {
			_ = f.Truncate(int64(len(text)))
			_, err = f.WriteAt([]byte(text), 0)
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Resolve(t.Context(), tag); err != nil {
			t.Fatalf("%s after it was written: %v", tag, err)
		}
		if _, err := p.Resolve(t.Context(), before); !errors.Is(err, chunk.ErrNotFound) {
			t.Fatalf("%s after it was written over: %v", before, err)
		}
	}
}

// TestAnIndexThatIsTheSame is not sent again by a server that can tell.
func TestAnIndexThatIsTheSame(t *testing.T) {
	for _, etag := range []bool{false, true} {
		c, dir := upstreamtest.NewContent(), t.TempDir()
		c.WriteLayout(t, dir, "")
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(filepath.Join(dir, "index.json"), old, old); err != nil {
			t.Fatal(err)
		}
		files := http.FileServer(http.Dir(dir))
		var mu sync.Mutex
		codes := make(map[int]int)
		p := onWeb(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if etag {
				w.Header().Set("ETag", `"as-it-is"`)
			}
			rec := httptest.NewRecorder()
			if r.URL.Path != "/index.json" {
				files.ServeHTTP(w, r)
				return
			}
			for k, v := range w.Header() {
				rec.Header()[k] = v
			}
			files.ServeHTTP(rec, r)
			mu.Lock()
			codes[rec.Code]++
			mu.Unlock()
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes())
		})), new(reports)).Repository("app")
		for range 5 {
			if _, err := p.Resolve(t.Context(), "v1"); err != nil {
				t.Fatal(err)
			}
		}
		if codes[200] != 1 || codes[304] != 4 {
			t.Errorf("etag %v: answers to index.json: %v", etag, codes)
		}
	}
}

// TestAFileThatShrinks while it is read is an error, of a blob that is not right.
func TestAFileThatShrinks(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	c.WriteLayout(t, dir, "")
	path := filepath.Join(dir, "blobs/sha256", c.Layer.Encoded())
	m, err := chunk.Grid(c.Layer, int64(len(c.Blobs[c.Layer])))
	if err != nil {
		t.Fatal(err)
	}
	var refs []chunk.Ref
	for i := range m.Len() {
		refs = append(refs, m.At(i))
	}
	n := 0
	err = chunk.GetRun(t.Context(), inDir(dir, new(reports)).Repository("app").Blob(), refs, func(chunk.Ref, []byte) error {
		n++
		return os.Truncate(path, chunk.Size+10)
	})
	if n != 1 || !chunk.IsCorrupt(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("%d chunks, %v", n, err)
	}
}

// TestDoubt: a large blob that did not match its digest is read once more before any of it
// is given out, and not given out when it is wrong, until it has changed.
func TestDoubt(t *testing.T) {
	c, dir, r := upstreamtest.NewContent(), t.TempDir(), new(reports)
	c.WriteLayout(t, dir, "")
	p := inDir(dir, r).Repository("app")
	content := c.Blobs[c.Layer]
	first := chunk.Ref{Blob: c.Layer, Total: int64(len(content)), Size: chunk.Size}
	read := func() error { _, err := p.Blob().Get(t.Context(), first); return err }
	p.Doubt(c.Layer)
	if err := read(); err != nil || len(r.take()) != 0 {
		t.Errorf("a blob that is right: %v", err)
	}
	wrong := slices.Clone(content)
	wrong[len(wrong)-1]++
	upstreamtest.WriteBlob(t, dir, c.Layer, wrong)
	if err := read(); err != nil {
		t.Errorf("a blob that nobody doubts: %v", err)
	}
	p.Doubt(c.Layer)
	path := filepath.Join(dir, "blobs/sha256", c.Layer.Encoded())
	if err := read(); !chunk.IsCorrupt(err) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), string(c.Layer)) {
		t.Errorf("a blob that is wrong: %v", err)
	}
	if _, err := p.Stat(t.Context(), c.Layer); !chunk.IsCorrupt(err) {
		t.Errorf("stat: %v", err)
	}
	if got := r.take(); len(got) != 1 || !strings.Contains(got[0].Error(), path) {
		t.Errorf("reported: %v", got)
	}
	upstreamtest.WriteBlob(t, dir, c.Layer, content)
	if err := read(); err != nil {
		t.Errorf("a blob that was put right: %v", err)
	}
}

// TestAWebServerHasNoSay in who may read what: its refusals are no registry's.
func TestAWebServerHasNoSay(t *testing.T) {
	p := onWeb(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="files"`)
		w.WriteHeader(http.StatusUnauthorized)
	})), new(reports)).Repository("app")
	_, resolve := p.Resolve(t.Context(), "v1")
	_, stat := p.Stat(t.Context(), digest.FromString("x"))
	for _, err := range []error{resolve, stat} {
		var said *upstream.StatusError
		if err == nil || errors.Is(err, chunk.ErrDenied) || errors.As(err, &said) || !strings.Contains(err.Error(), "401") {
			t.Errorf("%v", err)
		}
	}
}
