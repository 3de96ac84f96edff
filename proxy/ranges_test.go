package proxy_test

import (
	"bytes"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestAPartThatBreaksOffIsReadOn from the byte that is missing.
func TestAPartThatBreaksOffIsReadOn(t *testing.T) {
	layer := random(3<<20, 1)
	o := newOrigin()
	o.add("app", layer)
	o.cutAt = 60 << 10
	s := newStack(t, o, true)
	resp, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(digest.FromBytes(layer)), "Range", "bytes=1000-201000")
	if resp.StatusCode != http.StatusPartialContent || !bytes.Equal(body, layer[1000:201001]) {
		t.Errorf("%d, %d bytes", resp.StatusCode, len(body))
	}
	if n := o.gets.Load(); n > 4 {
		t.Errorf("%d requests", n)
	}
}

// TestAPartThatNeverComes is not asked for again and again.
func TestAPartThatNeverComes(t *testing.T) {
	layer := random(3<<20, 1)
	o := newOrigin()
	o.add("app", layer)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		bounds, ranged := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
		if !ranged || r.Method != http.MethodGet {
			return false
		}
		w.Header().Set("Content-Range", "bytes "+bounds+"/3145728")
		w.WriteHeader(http.StatusPartialContent)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	s := newStack(t, o, true)
	d := digest.FromBytes(layer)
	if resp, _ := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(d), "Range", "bytes=1000-201000"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("%d", resp.StatusCode)
	}
	if n := len(o.requests("GET /v2/app/blobs/" + string(d))); n != 5 {
		t.Errorf("%d requests", n)
	}
}

// TestWhatWasReadHereAndThereOfAWrongBlob is read anew once all of it did not match: the registry may have mended it.
func TestWhatWasReadHereAndThereOfAWrongBlob(t *testing.T) {
	layer, wrong := random(3<<20, 1), random(3<<20, 2)
	o := newOrigin()
	o.add("app", layer)
	var mended atomic.Bool
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if mended.Load() || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
		return true
	}
	s := newStack(t, o, true)
	path := "/v2/app/blobs/" + string(digest.FromBytes(layer))
	part := func() []byte {
		_, body := s.do(t, http.MethodGet, path, "Range", "bytes=1000-201000")
		return body
	}
	if !bytes.Equal(part(), wrong[1000:201001]) {
		t.Fatal("the test needs a part of what is wrong")
	}
	mended.Store(true)
	if !bytes.Equal(part(), wrong[1000:201001]) {
		t.Fatal("the part is not kept, which is what the test is about")
	}
	mended.Store(false)
	if _, body := s.do(t, http.MethodGet, path); bytes.Equal(body, wrong) {
		t.Error("all of what is wrong comes with a clean end")
	}
	mended.Store(true)
	if !bytes.Equal(part(), layer[1000:201001]) {
		t.Error("the part is wrong still")
	}
}
