package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy"
)

// chainedImage is an image with large modules that lead from one to the next, with others
// between that nothing leads to.
func chainedImage(t *testing.T, o *origin) (manifest, layer digest.Digest) {
	var files []any
	for i := range 20 {
		files = append(files, fmt.Sprintf("app/m%02d.py", i), fmt.Appendf(nil, "import m%02d\n# %x\n", i+1, random(100_000, uint64(i))))
		files = append(files, fmt.Sprintf("app/data%02d", i), random(300_000, uint64(100+i)))
	}
	files = append(files, "app/m20.py", []byte("x = 1\n"), "app/alone.py", []byte("y = 1\n"))
	p := tarOf(t, files...)
	return o.add("app", p), digest.FromBytes(p)
}

// read reads files of a mount, and returns how many bytes the origin has sent for that.
func (s *stack) read(t *testing.T, layer digest.Digest, id string, names ...string) int64 {
	t.Helper()
	before := s.origin.sent.Load()
	for _, name := range names {
		if resp, body := s.do(t, http.MethodGet, filePath("app", layer, name), proxy.MountHeader, id); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s: %s", name, resp.Status, body)
		}
	}
	return s.origin.sent.Load() - before
}

// quiet waits until the origin sends nothing any more.
func (s *stack) quiet(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is on its way", func() bool {
		before := s.origin.sent.Load()
		time.Sleep(100 * time.Millisecond)
		return s.origin.sent.Load() == before
	})
}

func TestWhatAFileLeadsToIsFetched(t *testing.T) {
	o := newOrigin()
	manifest, layer := chainedImage(t, o)
	s := newStack(t, o, true, keepContents(t), withoutLayers)
	m := s.mount(t, mountPath("app", manifest, "id", "prefetch"))
	s.read(t, layer, "id", "app/m00.py")
	m.until(t, "files are fetched ahead", func(now proxy.MountStatus) bool { return now.Ahead.Upstream > 0 })
	s.quiet(t)
	var chain []string
	for i := range 20 {
		chain = append(chain, fmt.Sprintf("app/m%02d.py", i+1))
	}
	if sent := s.read(t, layer, "id", chain...); sent > 0 {
		t.Errorf("%d bytes were sent for files that others have led to", sent)
	}
	if sent := s.read(t, layer, "id", "app/data07"); sent == 0 {
		t.Error("a file that nothing leads to was here")
	}

	// Who mounts it without prefetching gets nothing ahead.
	other := newStack(t, o, true, keepContents(t), withoutLayers)
	quiet := other.mount(t, mountPath("app", manifest, "id"))
	other.read(t, layer, "id", "app/m00.py")
	other.quiet(t)
	if now := quiet.until(t, "it is told of", func(proxy.MountStatus) bool { return true }); now.Ahead != (proxy.Travelled{}) {
		t.Errorf("%+v", now)
	}
}

// TestTheProgramOfAnImage is fetched when the image is mounted, before anybody reads it.
func TestTheProgramOfAnImage(t *testing.T) {
	o := newOrigin()
	p := gzipped(tarOf(t, "bin/tool", []byte("#!/bin/other\n"), "data", random(300_000, 1), "bin/other", []byte("other")))
	layer, config := digest.FromBytes(p), `{"config":{"Cmd":["tool"],"Env":["PATH=/bin"]}}`
	manifest := o.addConfigured("app", config, p)
	s := newStack(t, o, true, keepContents(t), withoutLayers)
	if resp, _ := s.do(t, http.MethodGet, tocPath("app", layer)); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	m := s.mount(t, mountPath("app", manifest, "id", "prefetch"))
	m.until(t, "it is fetched ahead", func(now proxy.MountStatus) bool { return now.Ahead != (proxy.Travelled{}) })
	s.quiet(t)
	if sent := s.read(t, layer, "id", "bin/tool", "bin/other"); sent > 0 {
		t.Errorf("%d bytes were sent for it", sent)
	}
}

// TestAnImageWhoseConfigurationIsNone is mounted all the same.
func TestAnImageWhoseConfigurationIsNone(t *testing.T) {
	o := newOrigin()
	p := tarOf(t, "f", []byte("content"), "data", random(300_000, 1), "lib/ld-musl-x86_64.so.1", random(200_000, 2))
	for name, config := range map[string]string{"empty": "", "no JSON": "#!", "of other types": `{"config":{"Cmd":7}}`, "long": strings.Repeat(" ", 5<<20)} {
		manifest := o.addConfigured("app", config, p)
		s := newStack(t, o, true, keepContents(t), withoutLayers)
		m := s.mount(t, mountPath("app", manifest, "id", "prefetch"))
		m.until(t, "what any program needs is here", func(now proxy.MountStatus) bool { return now.Ahead.Upstream > 0 })
		if resp, body := s.do(t, http.MethodGet, filePath("app", digest.FromBytes(p), "f"), proxy.MountHeader, "id"); string(body) != "content" {
			t.Errorf("%s: %s: %q", name, resp.Status, body)
		}
	}
}
