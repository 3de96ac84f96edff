package proxy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/toc"
)

// tarOf makes a layer of files, by name and content, and a hardlink to the first.
func tarOf(t *testing.T, files ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		p := files[i+1].([]byte)
		if err := w.WriteHeader(&tar.Header{Name: files[i].(string), Mode: 0o644, Size: int64(len(p)), ModTime: time.Unix(1e9, 0)}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(p)
	}
	if err := w.WriteHeader(&tar.Header{Name: "link", Typeflag: tar.TypeLink, Linkname: files[0].(string)}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(p)
	_ = w.Close()
	return b.Bytes()
}

// keepContents gives a registry a place for what is read of files.
func keepContents(t *testing.T) func(*proxy.Config) {
	disk, err := chunkstore.Open(t.TempDir(), chunkstore.Config{SyncEvery: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = disk.Close() })
	return func(cfg *proxy.Config) {
		cfg.Contents = &lazy.Contents{Store: disk, Records: cfg.Catalog}
		cfg.Layers = lazy.NewLayers(&lazy.Derived{Store: disk, Records: cfg.Catalog, Report: cfg.Report})
	}
}

func tocPath(repository string, d digest.Digest) string {
	return "/v2/" + repository + "/_granary/toc/" + string(d)
}

func filePath(repository string, d digest.Digest, name string) string {
	return "/v2/" + repository + "/_granary/file/" + string(d) + "?" + url.Values{"path": {name}}.Encode()
}

func TestTableOfALayer(t *testing.T) {
	plain := tarOf(t, "a/f", []byte("content"))
	for format, layer := range map[toc.Format][]byte{toc.Tar: plain, toc.TarGzip: gzipped(plain)} {
		o := newOrigin()
		o.add("app", layer)
		s := newStack(t, o, true, keepContents(t))
		path := tocPath("app", digest.FromBytes(layer))
		for _, coding := range []string{"", "gzip"} {
			resp, body := s.do(t, http.MethodGet, path, "Accept-Encoding", coding)
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != proxy.TOCType || resp.Header.Get("Content-Encoding") != coding {
				t.Fatalf("%s: %d %s %v", format, resp.StatusCode, body, resp.Header)
			}
			if resp.Header.Get(proxy.FormatHeader) != string(format) || resp.Header.Get(proxy.WhiteoutsHeader) != "oci" || resp.Header.Get(proxy.VerifiedHeader) != "layer" {
				t.Errorf("%s: %v", format, resp.Header)
			}
			r := io.Reader(bytes.NewReader(body))
			if coding == "gzip" {
				z, err := gzip.NewReader(r)
				if err != nil {
					t.Fatal(err)
				}
				r = z
			}
			table, err := toc.DecodeJSON(r, int64(len(layer)))
			if err != nil {
				t.Fatal(err)
			}
			if e, ok := table.Lookup("a/f"); !ok || e.Size != 7 {
				t.Errorf("%s: %v", format, e)
			}
		}
		if resp, _ := s.do(t, http.MethodHead, path); resp.StatusCode != http.StatusOK || resp.Header.Get(proxy.FormatHeader) != string(format) {
			t.Errorf("HEAD: %d %v", resp.StatusCode, resp.Header)
		}
	}
}

func TestFilesOfALayer(t *testing.T) {
	large := random(3<<20+17, 5)
	layer := tarOf(t, "a/small", []byte("content"), "large", large, "empty", []byte(nil))
	o := newOrigin()
	o.add("app", layer)
	o.add("private", tarOf(t, "secret", []byte("secret")))
	o.private["private"] = "basic"
	d, secret := digest.FromBytes(layer), digest.FromBytes(tarOf(t, "secret", []byte("secret")))
	s := newStack(t, o, true, keepContents(t))
	for _, c := range []struct {
		path, ranges string
		status       int
		body         []byte
	}{
		{filePath("app", d, "a/small"), "", 200, []byte("content")},
		{filePath("app", d, "/a/../a/small"), "", 200, []byte("content")},
		{filePath("app", d, "link"), "", 200, []byte("content")},
		{filePath("app", d, "empty"), "", 200, []byte{}},
		{filePath("app", d, "large"), "", 200, large},
		{filePath("app", d, "large"), "bytes=1048570-1048585", 206, large[1048570:1048586]},
		{filePath("app", d, "large"), "bytes=-5", 206, large[len(large)-5:]},
		{filePath("app", d, "large"), "bytes=99999999-", 416, nil},
		{filePath("app", d, "nothing"), "", 404, nil},
		{filePath("app", d, "a"), "", 400, nil},
		{filePath("app", digest.FromString("nothing"), "a"), "", 404, nil},
		{filePath("app", d, "link") + "&manifest=nonsense", "", 400, nil},
		{filePath("app", d, "link") + "&manifest=" + string(digest.FromString("x")), "", 404, nil},
		{filePath("private", secret, "secret"), "", 401, nil},
		{tocPath("private", secret), "", 401, nil},
		{filePath("app", secret, "secret"), "", 404, nil},
		{tocPath("app", "sha256:1234"), "", 400, nil},
		{"/v2/app/toc/" + string(d), "", 404, nil},
	} {
		resp, body := s.do(t, http.MethodGet, c.path, "Range", c.ranges)
		if resp.StatusCode != c.status || c.body != nil && !bytes.Equal(body, c.body) {
			t.Errorf("%s %s: %d, %d bytes: %.100q", c.path, c.ranges, resp.StatusCode, len(body), body)
		}
	}
	if resp, body := s.do(t, http.MethodGet, filePath("private", secret, "secret"), "Authorization", basic(password)); string(body) != "secret" {
		t.Errorf("with the password: %d %s", resp.StatusCode, body)
	}
}

func TestWhatIsNoLayer(t *testing.T) {
	o := newOrigin()
	junk, bomb := random(100_000, 3), gzipped(make([]byte, 64<<20))
	o.add("app", junk, bomb, []byte{}, []byte("{}"))
	s := newStack(t, o, true, keepContents(t))
	for name, p := range map[string][]byte{"junk": junk, "nothing but zeros": bomb, "nothing": {}, "a config": []byte("{}")} {
		resp, body := s.do(t, http.MethodGet, tocPath("app", digest.FromBytes(p)))
		switch {
		case resp.StatusCode == http.StatusOK && (name == "nothing" || name == "nothing but zeros"): // an empty tar
		case resp.StatusCode == http.StatusUnprocessableEntity || resp.StatusCode == http.StatusBadGateway:
		default:
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
}

// TestALittleIsLittle is about what leaves the upstream for a small file in a large
// layer.
func TestALittleIsLittle(t *testing.T) {
	var files []any
	for i := range 30 {
		files = append(files, fmt.Sprintf("large%02d", i), random(1<<20, uint64(i)), fmt.Sprintf("small%02d", i), []byte(fmt.Sprint("content", i)))
	}
	layer := tarOf(t, files...)
	o := newOrigin()
	o.add("app", layer)
	s := newStack(t, o, true, keepContents(t))
	d := digest.FromBytes(layer)
	if resp, body := s.do(t, http.MethodGet, tocPath("app", d)); resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if sent := o.sent.Load(); sent > int64(len(layer))/8 {
		t.Errorf("%d bytes were sent for the table of a layer of %d", sent, len(layer))
	}
	before := o.sent.Load()
	_, body := s.do(t, http.MethodGet, filePath("app", d, "small20"))
	if string(body) != "content20" || o.sent.Load()-before > 128<<10 {
		t.Errorf("%q; %d bytes were sent for it", body, o.sent.Load()-before)
	}
}

// TestPiecesBecomeAChunk when all of it has been read here and there.
func TestPiecesBecomeAChunk(t *testing.T) {
	var files []any
	for i := range 200 {
		files = append(files, fmt.Sprintf("f%03d", i), random(20_000, uint64(i)))
	}
	layer := tarOf(t, files...)
	o := newOrigin()
	o.add("app", layer)
	s := newStack(t, o, true, keepContents(t))
	d := digest.FromBytes(layer)
	for i := range 200 {
		if resp, body := s.do(t, http.MethodGet, filePath("app", d, fmt.Sprintf("f%03d", i))); !bytes.Equal(body, files[2*i+1].([]byte)) {
			t.Fatalf("f%03d: %d, %d bytes", i, resp.StatusCode, len(body))
		}
	}
	if sent := o.sent.Load(); sent > int64(len(layer))+pieceSize {
		t.Errorf("%d bytes were sent for all files of a layer of %d", sent, len(layer))
	}
	before := o.sent.Load()
	if _, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(d)); !bytes.Equal(body, layer) {
		t.Errorf("the blob: %d bytes", len(body))
	}
	if n := o.sent.Load() - before; n > 1<<20 {
		t.Errorf("%d bytes were sent again for the blob", n)
	}
}

const pieceSize = 64 << 10 // of what is read for a few bytes

// TestARegistryWithoutRangesSendsALayerOnce, and is asked for a part of it once.
func TestARegistryWithoutRangesSendsALayerOnce(t *testing.T) {
	var files []any
	for i := range 6 {
		files = append(files, fmt.Sprintf("f%d", i), random(1<<20, uint64(i)))
	}
	layer := tarOf(t, files...)
	o := newOrigin()
	o.noRange = true
	o.add("app", layer)
	s := newStack(t, o, true, keepContents(t))
	d := digest.FromBytes(layer)
	for i := range 6 {
		if _, body := s.do(t, http.MethodGet, filePath("app", d, fmt.Sprintf("f%d", i))); !bytes.Equal(body, files[2*i+1].([]byte)) {
			t.Fatalf("f%d: %d bytes", i, len(body))
		}
	}
	if n := o.gets.Load(); n > 2 {
		t.Errorf("%d requests for a blob that comes whole", n)
	}
}

// TestAContentIsFetchedOnce whatever layer and format it is in, for those who may
// read one of these layers.
func TestAContentIsFetchedOnce(t *testing.T) {
	shared := random(300_000, 7)
	one := gzipped(tarOf(t, "x", random(2<<20, 8), "f", shared))
	two := gzipped(tarOf(t, "other/name", shared, "y", random(2<<20, 9)))
	o := newOrigin()
	o.add("one", one)
	o.add("two", two)
	s := newStack(t, o, true, keepContents(t), func(cfg *proxy.Config) {
		cfg.Store = chunkstore.NewStack(chunkstore.NewMemory(0), nil) // layers are not kept
	})
	for _, p := range []string{tocPath("one", digest.FromBytes(one)), tocPath("two", digest.FromBytes(two)), filePath("one", digest.FromBytes(one), "f")} {
		if resp, body := s.do(t, http.MethodGet, p); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", p, resp.StatusCode, body)
		}
	}
	before := o.sent.Load()
	if _, body := s.do(t, http.MethodGet, filePath("two", digest.FromBytes(two), "other/name")); !bytes.Equal(body, shared) {
		t.Fatalf("%d bytes", len(body))
	}
	if n := o.sent.Load() - before; n > 0 {
		t.Errorf("%d bytes were sent for a content that is here", n)
	}
	// Who may no longer read the first gets the content from the second.
	o.set(func() { o.private["one"] = "basic" })
	if resp, _ := s.do(t, http.MethodGet, filePath("two", digest.FromBytes(two), "other/name")); resp.StatusCode != http.StatusOK {
		t.Errorf("%d", resp.StatusCode)
	}
}
