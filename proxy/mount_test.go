package proxy_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
)

func mountPath(repository string, d digest.Digest, id string, more ...string) string {
	q := url.Values{"id": {id}, "ref": {repository + ":v1"}, "dir": {"/mnt"}}
	for _, name := range more {
		q.Set(name, "")
	}
	return "/v2/" + repository + "/_granary/mount/" + string(d) + "?" + q.Encode()
}

// told is what a node says of a mount, for as long as it lasts.
type told struct {
	resp  *http.Response
	lines *json.Decoder
}

// mount mounts an image until the test, or end, ends it.
func (s *stack) mount(t *testing.T, path string) *told {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", path, resp.Status)
	}
	return &told{resp, json.NewDecoder(bufio.NewReader(resp.Body))}
}

func (m *told) end() { m.resp.Body.Close() }

// until reads on until something is said of the mount.
func (m *told) until(t *testing.T, what string, ok func(proxy.MountStatus) bool) proxy.MountStatus {
	t.Helper()
	for range 60 {
		var now proxy.MountStatus
		if err := m.lines.Decode(&now); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if ok(now) {
			return now
		}
	}
	t.Fatalf("never: %s", what)
	return proxy.MountStatus{}
}

// mountedImage is an image of a gzip layer with 40 large and 40 small files.
func mountedImage(t *testing.T, o *origin) (manifest, layer digest.Digest) {
	var files []any
	for i := range 40 {
		files = append(files, fmt.Sprintf("large%02d", i), random(200_000, uint64(i)), fmt.Sprintf("small%02d", i), []byte(fmt.Sprint("content", i)))
	}
	p := gzipped(tarOf(t, files...))
	return o.add("app", p), digest.FromBytes(p)
}

// withoutLayers makes a node that does not keep layers.
func withoutLayers(cfg *proxy.Config) {
	cfg.Store = chunkstore.NewStack(chunkstore.NewMemory(0), nil)
}

func repositoryOf(name string) ref.Repository { return ref.Repository{Host: "origin.test", Name: name} }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func TestTheNextRunIsGivenWhatThisOneReads(t *testing.T) {
	o := newOrigin()
	manifest, layer := mountedImage(t, o)
	s := newStack(t, o, true, keepContents(t), withoutLayers)
	if resp, body := s.do(t, http.MethodGet, tocPath("app", layer)); resp.StatusCode != http.StatusOK { // which makes the index
		t.Fatalf("%s: %s", resp.Status, body)
	}

	first := s.mount(t, mountPath("app", manifest, "first", "prefetch"))
	for _, name := range []string{"large20", "small03"} {
		if resp, _ := s.do(t, http.MethodGet, filePath("app", layer, name), proxy.MountHeader, "first"); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
	}
	now := first.until(t, "both are counted", func(m proxy.MountStatus) bool { return m.Files == 2 })
	if now.Read != 200_000+int64(len("content3")) || now.Demanded.Upstream == 0 || now.Ahead != (proxy.Travelled{}) || now.Rest != "" {
		t.Errorf("%+v", now)
	}
	if all := s.registry.Mounts(); len(all) != 1 || all[0].Ref != "app:v1" || all[0].Dir != "/mnt" {
		t.Errorf("mounts: %+v", all)
	}
	first.end()
	eventually(t, "the mount is over", func() bool { return len(s.registry.Mounts()) == 0 })
	eventually(t, "the run is in the profile", func() bool { return s.registry.KeptProfile(t.Context(), manifest) != nil })

	// Another node knows the profile, but not the files.
	other := newStack(t, o, true, keepContents(t), withoutLayers)
	if resp, _ := other.do(t, http.MethodGet, tocPath("app", layer)); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	facts, err := json.Marshal(proxy.Facts{Profiles: map[digest.Digest][]byte{manifest: s.registry.KeptProfile(t.Context(), manifest)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.registry.Learn(proxy.In{Repository: repositoryOf("app")}, facts); err != nil {
		t.Fatal(err)
	}
	second := other.mount(t, mountPath("app", manifest, "second", "prefetch"))
	second.until(t, "what is expected has come", func(m proxy.MountStatus) bool { return m.Ahead.Upstream > 0 })
	eventually(t, "nothing is on its way", func() bool {
		before := o.sent.Load()
		time.Sleep(50 * time.Millisecond)
		return o.sent.Load() == before
	})
	before := o.sent.Load()
	for _, name := range []string{"large20", "small03"} {
		if resp, _ := other.do(t, http.MethodGet, filePath("app", layer, name), proxy.MountHeader, "second"); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
	}
	if n := o.sent.Load() - before; n > 0 {
		t.Errorf("%d bytes were sent for what was expected", n)
	}
}

// TestTheNextRunIsGivenWhatTheKernelReads of a layer that it has mounted itself: parts of
// the layer as it is.
func TestTheNextRunIsGivenWhatTheKernelReads(t *testing.T) {
	o := newOrigin()
	blob := random(9<<20, 1)
	layer, manifest := digest.FromBytes(blob), o.add("app", blob)
	parts := []string{"bytes=0-4095", "bytes=3145000-3155000", "bytes=8000000-8016383"}
	read := func(s *stack, id string) {
		for _, part := range parts {
			resp, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(layer), "Range", part, proxy.MountHeader, id)
			if resp.StatusCode != http.StatusPartialContent || len(body) == 0 {
				t.Fatalf("%s: %s", part, resp.Status)
			}
		}
	}
	s := newStack(t, o, true, keepContents(t))
	first := s.mount(t, mountPath("app", manifest, "first", "prefetch"))
	read(s, "first")
	now := first.until(t, "they are counted", func(m proxy.MountStatus) bool { return m.Read == 4096+10001+16384 })
	if now.Demanded.Upstream == 0 || now.Demanded.Upstream > 4*64<<10 {
		t.Errorf("%d bytes came for small parts", now.Demanded.Upstream)
	}
	first.end()
	eventually(t, "the run is in the profile", func() bool { return s.registry.KeptProfile(t.Context(), manifest) != nil })

	other := newStack(t, o, true, keepContents(t))
	facts, err := json.Marshal(proxy.Facts{Profiles: map[digest.Digest][]byte{manifest: s.registry.KeptProfile(t.Context(), manifest)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.registry.Learn(proxy.In{Repository: repositoryOf("app")}, facts); err != nil {
		t.Fatal(err)
	}
	second := other.mount(t, mountPath("app", manifest, "second", "prefetch"))
	second.until(t, "what is expected has come", func(m proxy.MountStatus) bool { return m.Ahead.Upstream > 0 })
	other.quiet(t)
	before := o.sent.Load()
	read(other, "second")
	if n := o.sent.Load() - before; n > 0 {
		t.Errorf("%d bytes were sent for what was expected", n)
	}
}

func TestWithoutPrefetchNothingIsFetchedAhead(t *testing.T) {
	o := newOrigin()
	manifest, layer := mountedImage(t, o)
	s := newStack(t, o, true, keepContents(t), withoutLayers)
	if resp, _ := s.do(t, http.MethodGet, tocPath("app", layer)); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	first := s.mount(t, mountPath("app", manifest, "first"))
	s.do(t, http.MethodGet, filePath("app", layer, "large20"), proxy.MountHeader, "first")
	first.end()
	eventually(t, "the run is in the profile", func() bool { return s.registry.KeptProfile(t.Context(), manifest) != nil })
	second := s.mount(t, mountPath("app", manifest, "second"))
	now := second.until(t, "it is told of", func(proxy.MountStatus) bool { return true })
	if now.Ahead != (proxy.Travelled{}) {
		t.Errorf("%+v", now)
	}
}

// TestTheRestOfAnImage is fetched when somebody says so, with no byte twice.
func TestTheRestOfAnImage(t *testing.T) {
	o := newOrigin()
	layers := [][]byte{tarOf(t, "a", random(9<<20, 1)), tarOf(t, "b", random(5<<20, 2)), tarOf(t, "c", []byte("small"))}
	manifest := o.add("app", layers...)
	s := newStack(t, o, true, keepContents(t))
	m := s.mount(t, mountPath("app", manifest, "id"))
	if resp, body := s.do(t, http.MethodGet, mountPath("app", manifest, "id", "now", "rest")); resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"rest":`) {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	m.until(t, "the rest is here", func(m proxy.MountStatus) bool { return m.Rest == "complete" })
	want := int64(0)
	for _, l := range layers {
		want += int64(len(l))
	}
	if sent := o.sent.Load(); sent != want {
		t.Errorf("%d bytes were sent for layers of %d", sent, want)
	}
	for _, l := range layers {
		if _, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(digest.FromBytes(l))); digest.FromBytes(body) != digest.FromBytes(l) {
			t.Errorf("a layer has %d bytes", len(body))
		}
	}
	if sent := o.sent.Load(); sent != want {
		t.Errorf("%d bytes were sent when all was here", sent-want)
	}
}

// TestAFileThatIsReadOn is fetched ahead of who reads it.
func TestAFileThatIsReadOn(t *testing.T) {
	o := newOrigin()
	layer := tarOf(t, "large", random(48<<20, 1))
	manifest := o.add("app", layer)
	d := digest.FromBytes(layer)
	s := newStack(t, o, true, keepContents(t))
	m := s.mount(t, mountPath("app", manifest, "id"))
	for off := 0; off < 8<<20; off += 1 << 20 {
		resp, body := s.do(t, http.MethodGet, filePath("app", d, "large"), "Range", fmt.Sprintf("bytes=%d-%d", off, off+1<<20-1), proxy.MountHeader, "id")
		if resp.StatusCode != http.StatusPartialContent || len(body) != 1<<20 {
			t.Fatal(resp.Status)
		}
	}
	m.until(t, "some is fetched ahead", func(m proxy.MountStatus) bool { return m.Ahead.Upstream >= 4<<20 })
}

func TestMountsThatAreRefused(t *testing.T) {
	o := newOrigin()
	manifest := o.add("app", tarOf(t, "f", []byte("content")))
	secret := o.add("private", tarOf(t, "f", []byte("secret")))
	o.private["private"] = "basic"
	s := newStack(t, o, true, keepContents(t))
	m := s.mount(t, mountPath("app", manifest, "id"))
	for name, c := range map[string]struct {
		path   string
		status int
	}{
		"no id":             {mountPath("app", manifest, ""), 400},
		"a long id":         {mountPath("app", manifest, strings.Repeat("x", 65)), 400},
		"the same id":       {mountPath("app", manifest, "id"), 503},
		"no such image":     {mountPath("app", digest.FromString("nothing"), "other"), 404},
		"no such layer":     {mountPath("app", digest.FromString("nothing"), "other", "layer"), 404},
		"a private image":   {mountPath("private", secret, "other"), 401},
		"no such mount":     {mountPath("app", manifest, "other", "now"), 404},
		"another's mount":   {mountPath("private", secret, "id", "now"), 404},
		"a mount elsewhere": {mountPath("other", manifest, "id", "now", "rest"), 404},
	} {
		if resp, body := s.do(t, http.MethodGet, c.path); resp.StatusCode != c.status {
			t.Errorf("%s: %s: %s", name, resp.Status, body)
		}
	}
	m.end()
	eventually(t, "the mount is over", func() bool { return len(s.registry.Mounts()) == 0 })
}

// TestMountsEndWithTheNode, which does not wait for them.
func TestMountsEndWithTheNode(t *testing.T) {
	o := newOrigin()
	manifest := o.add("app", tarOf(t, "f", []byte("content")))
	s := newStack(t, o, true, keepContents(t))
	m := s.mount(t, mountPath("app", manifest, "id"))
	m.until(t, "it is told of", func(proxy.MountStatus) bool { return true })
	s.registry.EndMounts()
	var last proxy.MountStatus
	for m.lines.Decode(&last) == nil {
	}
	eventually(t, "the mount is over", func() bool { return len(s.registry.Mounts()) == 0 })
	if resp, _ := s.do(t, http.MethodGet, mountPath("app", manifest, "next")); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a new one: %s", resp.Status)
	}
}

func TestALearnedProfileIsChecked(t *testing.T) {
	s := newStack(t, newOrigin(), true, keepContents(t))
	for name, facts := range map[string]string{
		"no profile":   `{"profiles":{"` + string(digest.FromString("x")) + `":"bm90aGluZw=="}}`,
		"no digest":    `{"profiles":{"nonsense":""}}`,
		"too many":     `{"profiles":{"` + string(digest.FromString("x")) + `":"","` + string(digest.FromString("y")) + `":""}}`,
		"no base64":    `{"profiles":{"` + string(digest.FromString("x")) + `":"!"}}`,
		"not an image": `{"profiles":[]}`,
	} {
		if err := s.registry.Learn(proxy.In{Repository: repositoryOf("app")}, []byte(facts)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestAFileIsOpenedWhereItMayBeRead, and not by who only knows its digest.
func TestAFileIsOpenedWhereItMayBeRead(t *testing.T) {
	o := newOrigin()
	secret := random(300_000, 1)
	private, public := gzipped(tarOf(t, "secret", secret)), gzipped(tarOf(t, "stolen", secret, "own", []byte("own")))
	theirs, ours := o.add("private", private), o.add("public", public)
	o.private["private"] = "basic"
	s := newStack(t, o, true, keepContents(t))
	if resp, _ := s.do(t, http.MethodGet, filePath("private", digest.FromBytes(private), "secret"), "Authorization", basic(password)); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	s.mount(t, mountPath("public", ours, "id"))
	layer := digest.FromBytes(public)
	if _, ok := s.registry.File("id", layer, "stolen"); ok {
		t.Error("a content that was read from a private layer alone is opened for another one")
	}
	for _, name := range []string{"own", "stolen"} { // as who mounts it may
		if resp, _ := s.do(t, http.MethodGet, filePath("public", layer, name), proxy.MountHeader, "id"); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		if e, ok := s.registry.File("id", layer, name); !ok || e.Name != name {
			t.Errorf("%s: %v, %v", name, e, ok)
		}
	}
	for name, c := range map[string]struct {
		id    string
		layer digest.Digest
		path  string
	}{
		"no mount":            {"other", layer, "own"},
		"no file":             {"id", layer, "nothing"},
		"another's layer":     {"id", digest.FromBytes(private), "secret"},
		"another's manifest":  {"id", theirs, "secret"},
		"a layer of no image": {"id", "nonsense", "own"},
	} {
		if _, ok := s.registry.File(c.id, c.layer, c.path); ok {
			t.Errorf("%s: it is opened", name)
		}
	}
}
