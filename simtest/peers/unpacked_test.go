package peers

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/rebuild"
)

// tree is the files of a layer's tar, by name.
func treeOf(t *testing.T, layer []byte) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if files[h.Name], err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// readFiles reads all files of an image's layer one by one, as a mount does.
func (m *member) readFiles(img *image, files map[string][]byte, header ...string) error {
	if a := m.get("/v2/"+img.repository+"/manifests/"+img.tag, header...); a.status != http.StatusOK {
		return fmt.Errorf("manifest: %d %w", a.status, a.err)
	}
	path := strings.Replace(img.path(img.order[1]), "/blobs/", "/_granary/file/", 1)
	for name, want := range files {
		if err := m.gives(want, path+"?path="+url.QueryEscape(name), header...); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// packers of layers whose files a site reads by what the layer unpacks to, by name and media type.
func lazyPackers(t *testing.T) map[string]func(tar []byte) (mediaType string, layer []byte) {
	all := map[string]func([]byte) (string, []byte){
		"a tar":            func(p []byte) (string, []byte) { return layerType, p },
		"Go's gzip":        func(p []byte) (string, []byte) { return gzipType, goGzip.pack(t, p) },
		"without a recipe": func(p []byte) (string, []byte) { return gzipType, chopped.pack(t, p) },
	}
	if program, err := exec.LookPath("gzip"); err == nil {
		all["GNU gzip"] = func(p []byte) (string, []byte) {
			cmd := exec.CommandContext(t.Context(), program, "-n")
			cmd.Stdin = bytes.NewReader(p)
			layer, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			return gzipType, layer
		}
	}
	return all
}

// TestASiteReadsWhatChanged: of files of a new version that are read one by one, only what has changed crosses the line,
// once, whether the old version was pulled or was read file by file too; and the registry is asked for nothing.
func TestASiteReadsWhatChanged(t *testing.T) {
	t.Parallel()
	for name, pack := range lazyPackers(t) {
		for _, pulled := range []bool{true, false} {
			if pulled && name == "a tar" {
				continue // of what is pulled only layers in gzip are looked into
			}
			t.Run(fmt.Sprintf("%s, pulled %v", name, pulled), func(t *testing.T) {
				t.Parallel()
				r := newRegistry(t)
				h := newHub(t, r)
				c := newCluster(t, r, 2, unreachable, under(h))
				old, now := versionOf(t, 1), versionOf(t, 2)
				push := func(tag string, tar []byte) *image {
					mediaType, layer := pack(tar)
					img := r.pushOf(mediaType, "app", tag, layer)
					if err := h.pull(img, ""); err != nil {
						t.Fatal(err)
					}
					return img
				}
				v1, v2 := push("v1", old), push("v2", now)
				if pulled {
					pullAtOnce(t, v1, 1, c.members...)
				}
				for _, m := range c.members {
					if pulled {
						break
					}
					if err := m.readFiles(v1, treeOf(t, old)); err != nil {
						t.Fatal(err)
					}
				}
				before, gets := h.sent.Load(), r.count("GET")
				for _, m := range c.members {
					if err := m.readFiles(v2, treeOf(t, now)); err != nil {
						t.Fatal(err)
					}
				}
				// A tenth of the files is new. Both members have the map, and one that waits for long for the other one
				// gets a file itself.
				if sent := h.sent.Load() - before; sent > v2.size()/4 {
					t.Errorf("%d bytes crossed the line for an image of %d", sent, v2.size())
				}
				if n := r.count("GET") - gets; n > 0 {
					t.Errorf("the registry was asked %d times", n)
				}
				saved := int64(0)
				for _, m := range c.members {
					saved += m.Status().WAN.Saved
				}
				if pulled && saved < v2.size()/2 {
					t.Errorf("%d bytes are said to be saved", saved)
				}
			})
		}
	}
}

// TestFilesAreRightWhateverAParentSays of the chunks of a layer; for a lie it is named. Where it stops answering, the layer is read by its
// bytes, from the registry.
func TestFilesAreRightWhateverAParentSays(t *testing.T) {
	t.Parallel()
	cut := func(p []byte) []byte { return p[:len(p)/2] }
	lies := map[string]struct {
		lie   func(mediaType string, p []byte) []byte
		named bool
	}{
		"a map that is cut": {func(mediaType string, p []byte) []byte {
			if mediaType == rebuild.MapType {
				p = cut(p)
			}
			return p
		}, false},
		"contents that are cut": {func(mediaType string, p []byte) []byte {
			if mediaType == rebuild.ContentsType {
				p = cut(p)
			}
			return p
		}, true},
		"other contents": {func(mediaType string, p []byte) []byte {
			if mediaType == rebuild.ContentsType {
				p[len(p)-9]++
			}
			return p
		}, true},
		"nothing any more": {nil, false},
	}
	for name, c := range lies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			h, l := newHub(t, r), &line{lie: c.lie}
			l.watch(h)
			m := newCluster(t, r, 1, under(h)).members[0]
			content := versionOf(t, 1)
			img := r.pushOf(gzipType, "app", "v1", goGzip.pack(t, content))
			if err := h.pull(img, ""); err != nil {
				t.Fatal(err)
			}
			files := treeOf(t, content)
			if c.lie == nil {
				some := map[string][]byte{"usr/lib/file0000": files["usr/lib/file0000"]}
				if err := m.readFiles(img, some); err != nil {
					t.Fatal(err)
				}
				h.Close()
			}
			if err := m.readFiles(img, files); err != nil {
				t.Error(err)
			}
			if named := m.Status().Parents[0].Faults > 0; named != c.named {
				t.Errorf("the parent is %+v", m.Status().Parents[0])
			}
		})
	}
}

// TestReadFilesStayWhenTheLineIsCut, also for a node that is started again meanwhile.
func TestReadFilesStayWhenTheLineIsCut(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	h := newHub(t, r)
	c := newCluster(t, r, 1, unreachable, under(h))
	content := versionOf(t, 1)
	img := r.pushOf(gzipType, "app", "v1", goGzip.pack(t, content))
	if err := h.pull(img, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.members[0].readFiles(img, treeOf(t, content)); err != nil {
		t.Fatal(err)
	}
	h.Close()
	old := c.members[0]
	c.stop(old)
	again := c.join(func(cfg *node.Config) { cfg.DataDir = old.cfg.DataDir })
	if err := again.readFiles(img, treeOf(t, content)); err != nil {
		t.Error(err)
	}
}

// TestFilesAreForThoseWhoMayReadTheLayer, whatever a parent gives to others.
func TestFilesAreForThoseWhoMayReadTheLayer(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.set(func() { r.private["secret"], r.rights["mine"] = "bearer", []string{"secret"} })
	h := newHub(t, r)
	var asked atomic.Int64
	look := func(q *http.Request, resp *http.Response) {
		if strings.Contains(q.URL.Path, "/"+rebuild.ContentsPath) && resp.StatusCode == http.StatusOK {
			asked.Add(1)
		}
	}
	h.spoil.Store(&look)
	m := newCluster(t, r, 1, unreachable, under(h)).members[0]
	content := versionOf(t, 1)
	img := r.pushOf(gzipType, "secret", "v1", goGzip.pack(t, content))
	if err := h.pull(img, "Bearer mine"); err != nil {
		t.Fatal(err)
	}
	files := treeOf(t, content)
	if err := m.readFiles(img, files); err == nil || asked.Load() > 0 {
		t.Errorf("who may not read it: %v, after %d questions", err, asked.Load())
	}
	if err := m.readFiles(img, files, "Authorization", "Bearer mine"); err != nil {
		t.Error(err)
	}
	path := strings.Replace(img.path(img.order[1]), "/blobs/", "/_granary/file/", 1)
	if a := m.get(path+"?path=usr/lib/file0001", "Authorization", "Bearer other"); a.status == http.StatusOK {
		t.Errorf("who may not read it gets %d", a.status)
	}
}
