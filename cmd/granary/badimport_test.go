package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/cmd/granary/node"
)

// badLayouts are changes to a layout with an image of a layer, and what is said of it then.
var badLayouts = map[string]func(t *testing.T, l *library, dir string, image, layer ocispec.Descriptor) (want string){
	"no oci-layout": func(t *testing.T, _ *library, dir string, _, _ ocispec.Descriptor) string {
		remove(t, dir+"/oci-layout")
		return dir + "/oci-layout: the file is missing"
	},
	"another version": func(t *testing.T, _ *library, dir string, _, _ ocispec.Descriptor) string {
		write(t, dir+"/oci-layout", `{"imageLayoutVersion":"2"}`)
		return dir + `/oci-layout: imageLayoutVersion is "2"`
	},
	"a manifest of another size": func(t *testing.T, _ *library, dir string, image, _ ocispec.Descriptor) string {
		p, err := os.ReadFile(dir + "/index.json")
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir+"/index.json", strings.Replace(string(p), fmt.Sprintf(`"size": %d`, image.Size), `"size": 7`, 1))
		return layoutFile(dir, image.Digest) + fmt.Sprintf(": corrupt: the file has %d bytes, and 7 by index.json", image.Size)
	},
	"a blob of another size": func(t *testing.T, _ *library, dir string, _, layer ocispec.Descriptor) string {
		write(t, layoutFile(dir, layer.Digest), "short")
		return layoutFile(dir, layer.Digest) + ": "
	},
	"wrong bytes": func(t *testing.T, _ *library, dir string, _, layer ocispec.Descriptor) string {
		write(t, layoutFile(dir, layer.Digest), "LAYER OF i")
		return layoutFile(dir, layer.Digest) + ": "
	},
	"no blob": func(t *testing.T, _ *library, dir string, image, layer ocispec.Descriptor) string {
		remove(t, layoutFile(dir, layer.Digest))
		return "missing: blob " + string(layer.Digest) + " (layers[0] of " + string(image.Digest) + ")"
	},
	"a symlink out of it": func(t *testing.T, _ *library, dir string, _, layer ocispec.Descriptor) string {
		outside := filepath.Join(t.TempDir(), "layer")
		write(t, outside, "layer of i")
		remove(t, layoutFile(dir, layer.Digest))
		if err := os.Symlink(outside, layoutFile(dir, layer.Digest)); err != nil {
			t.Fatal(err)
		}
		return layoutFile(dir, layer.Digest) + ": path escapes"
	},
	"a bomb": func(t *testing.T, l *library, dir string, image, _ ocispec.Descriptor) string {
		bomb := image
		var wraps []ocispec.Descriptor
		for i := range 30 {
			bomb = l.manifest(indexType, map[string]any{"n": i, "manifests": []any{bomb}})
			write(t, layoutFile(dir, bomb.Digest), string(l.manifests[string(bomb.Digest)].bytes))
			wraps = append(wraps, bomb)
		}
		p, _ := withEntries(newIndex(), []ocispec.Descriptor{named(bomb, "registry.test/app:v1")})
		write(t, dir+"/index.json", string(p))
		return string(wraps[30-1-16].Digest) + ": what it refers to is nested more than 16 deep"
	},
	"a nested manifest of another size": func(t *testing.T, l *library, dir string, image, _ ocispec.Descriptor) string {
		size := image.Size
		image.Size = 7
		index := l.manifest(indexType, map[string]any{"manifests": []any{image}})
		write(t, layoutFile(dir, index.Digest), string(l.manifests[string(index.Digest)].bytes))
		p, _ := withEntries(newIndex(), []ocispec.Descriptor{named(index, "registry.test/app:v1")})
		write(t, dir+"/index.json", string(p))
		return layoutFile(dir, image.Digest) + ": manifest " + string(image.Digest) + " (manifests[0] of " + string(index.Digest) + "): " +
			string(image.Digest) + fmt.Sprintf(": it has %d bytes, not the 7 that are stated", size)
	},
	"wrong bytes of a manifest": func(t *testing.T, _ *library, dir string, image, _ ocispec.Descriptor) string {
		write(t, layoutFile(dir, image.Digest), strings.Repeat(" ", int(image.Size)))
		return layoutFile(dir, image.Digest) + ": corrupt: "
	},
	"a directory that leads out of it": func(t *testing.T, _ *library, dir string, image, _ ocispec.Descriptor) string {
		outside := filepath.Join(t.TempDir(), "blobs")
		if err := errors.Join(os.Rename(dir+"/blobs", outside), os.Symlink(outside, dir+"/blobs")); err != nil {
			t.Fatal(err)
		}
		return layoutFile(dir, image.Digest) + ": path escapes"
	},
	"a pipe": func(t *testing.T, _ *library, dir string, _, layer ocispec.Descriptor) string {
		remove(t, layoutFile(dir, layer.Digest))
		if err := syscall.Mkfifo(layoutFile(dir, layer.Digest), 0o600); err != nil {
			t.Fatal(err)
		}
		return layoutFile(dir, layer.Digest) + ": it is no regular file"
	},
	"an index that ends too soon": func(t *testing.T, _ *library, dir string, _, _ ocispec.Descriptor) string {
		write(t, dir+"/index.json", `{"schemaVersion":2,"manifests":[`)
		return dir + "/index.json: unexpected end of JSON"
	},
	"no images": func(t *testing.T, _ *library, dir string, _, _ ocispec.Descriptor) string {
		write(t, dir+"/index.json", string(newIndex()))
		return "the layout names no images"
	},
}

// badArchives are changes to the entries of an archive, and what is said of them beside the
// archive's name.
var badArchives = map[string]func(p []byte, layer ocispec.Descriptor) (changed []byte, want string){
	"with a path that climbs out": func(p []byte, _ ocispec.Descriptor) ([]byte, string) {
		return entered(p, tar.Header{Typeflag: tar.TypeReg, Name: "blobs/sha256/../../../x"}), `"blobs/sha256/../../../x" leads out`
	},
	"with a symlink in place of a blob": func(p []byte, layer ocispec.Descriptor) ([]byte, string) {
		return entered(p, tar.Header{Typeflag: tar.TypeSymlink, Name: "blobs/sha256/" + layer.Digest.Encoded(), Linkname: "/etc/passwd"}), layer.Digest.Encoded() + `" is no regular file`
	},
	"with a hard link in place of a blob": func(p []byte, layer ocispec.Descriptor) ([]byte, string) {
		return entered(p, tar.Header{Typeflag: tar.TypeLink, Name: "blobs/sha256/" + layer.Digest.Encoded(), Linkname: "index.json"}), layer.Digest.Encoded() + `" is no regular file`
	},
	"truncated within a blob": func(p []byte, layer ocispec.Descriptor) ([]byte, string) {
		return p[:bytes.Index(p, []byte("layer of i"))+3], `the archive ends within "blobs/sha256/` + layer.Digest.Encoded()
	},
	"truncated between blobs": func(p []byte, layer ocispec.Descriptor) ([]byte, string) {
		return p[:bytes.Index(p, []byte("blobs/sha256/"+layer.Digest.Encoded()))], "missing: "
	},
	"truncated within a header": func(p []byte, layer ocispec.Descriptor) ([]byte, string) {
		return p[:bytes.Index(p, []byte("blobs/sha256/"+layer.Digest.Encoded()))+100], "the archive cannot be read beyond its first"
	},
	"empty": func([]byte, ocispec.Descriptor) ([]byte, string) { return nil, "/index.json: the file is missing" },
	"compressed": func(p []byte, _ ocispec.Descriptor) ([]byte, string) {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(p)
		_ = w.Close()
		return b.Bytes(), "it is compressed with gzip: decompress it first"
	},
}

// entered adds an entry to a tar.
func entered(p []byte, h tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&h)
	_ = w.Close()
	return append(b.Bytes()[:b.Len()-1024], p...)
}

// badImports are imports of something bad into a node that has an image from before under the same name.
type badImports struct {
	*library
	node           *node.Node
	blobs          int // that the node has
	earlier, image ocispec.Descriptor
	dir, file      string // the bad image, before it is bad
}

func newBadImports(t *testing.T) *badImports {
	b := &badImports{library: newLibrary(t), node: alone(t, t.TempDir()), dir: t.TempDir(), file: filepath.Join(t.TempDir(), "out.tar")}
	b.earlier, b.image = b.library.image("earlier"), b.library.image("i")
	before := t.TempDir()
	b.tag("v1", b.earlier)
	b.exported(t, "registry.test/app:v1", "oci:"+before)
	if status, _, errs := granary(t, "import", "oci:"+before, "--node", b.node.AdminURL()); status != 0 {
		t.Fatal(errs)
	}
	b.blobs = b.node.Status().Store.Blobs
	b.tag("v1", b.image)
	b.exported(t, "registry.test/app:v1", "oci:"+b.dir)
	b.exported(t, "registry.test/app:v1", "oci-archive:"+b.file)
	return b
}

// layer is the one of the bad image.
func (b *badImports) layer() ocispec.Descriptor { return b.blob(layerType, "layer of i") }

// fails imports what is bad, and reports what is not served any more of what was imported before,
// and what there is of the bad.
func (b *badImports) fails(t *testing.T, at, want string) {
	t.Helper()
	status, out, errs := granary(t, "import", at, "--node", b.node.AdminURL())
	if status != 1 || out != "" || !strings.Contains(errs, want) {
		t.Errorf("%d, %s%s; want %s", status, out, errs, want)
	}
	if now := b.node.Status().Store.Blobs; now != b.blobs {
		t.Errorf("the node has %d blobs of it", now-b.blobs)
	}
	url := b.node.URLs()[0] + "/v2/app/"
	if resp, p := ask(t, http.MethodGet, url+"manifests/v1"); resp.StatusCode != 200 || digest.FromBytes(p) != b.earlier.Digest {
		t.Errorf("the tag is %s %s", resp.Status, p)
	}
	if resp, p := ask(t, http.MethodGet, url+"blobs/"+string(b.blob(layerType, "layer of earlier").Digest)); resp.StatusCode != 200 || string(p) != "layer of earlier" {
		t.Errorf("the layer from before is %s %s", resp.Status, p)
	}
	if resp, _ := ask(t, http.MethodGet, url+"manifests/"+string(b.image.Digest)); resp.StatusCode == 200 {
		t.Error("the bad one is served")
	}
}

// TestBadImports: the error names the file and the digest, the node has nothing of it, and what was
// imported before stays.
func TestBadImports(t *testing.T) {
	b := newBadImports(t)
	// What no archive has is said in other words of one.
	inArchive := map[string]string{
		"a symlink out of it": "is no regular file", "a pipe": "is no regular file", "a directory that leads out of it": "missing: manifest " + string(b.image.Digest),
	}
	for name, change := range badLayouts {
		t.Run(name, func(t *testing.T) {
			dir, file := filepath.Join(t.TempDir(), "layout"), filepath.Join(t.TempDir(), "layout.tar")
			if err := os.CopyFS(dir, os.DirFS(b.dir)); err != nil {
				t.Fatal(err)
			}
			want := change(t, b.library, dir, b.image, b.layer())
			b.fails(t, "oci:"+dir, want)
			if out, err := exec.Command("tar", "-C", dir, "-cf", file, ".").CombinedOutput(); err != nil { // it knows links and pipes too
				t.Fatalf("%v\n%s", err, out)
			}
			b.fails(t, "oci-archive:"+file, cmp.Or(inArchive[name], strings.ReplaceAll(want, dir, file)))
		})
	}
	for name, change := range badArchives {
		t.Run("archive "+name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "layout.tar")
			p, want := change(readFile(t, b.file), b.layer())
			write(t, file, string(p))
			b.fails(t, "oci-archive:"+file, want)
		})
	}
}

// TestWrongBytesOfALargeLayer, which only who reads all of it finds: the file is named, and nothing
// is sent.
func TestWrongBytesOfALargeLayer(t *testing.T) {
	for name, form := range exports {
		t.Run(name, func(t *testing.T) {
			l, dir := newLibrary(t), t.TempDir()
			_, layer := l.addLarge("v1")
			l.exported(t, "registry.test/app:v1", form.target(dir))
			file, at, want := layoutFile(filepath.Join(dir, "out"), layer.Digest), int64(5*chunk.Size), ""
			if want = file; name == "archive" {
				file = filepath.Join(dir, "out.tar")
				at += int64(strings.Index(string(readFile(t, file)), large()[:100]))
				want = file + "/blobs/sha256/" + layer.Digest.Encoded()
			}
			alter(t, file, at)
			n := alone(t, t.TempDir())
			status, _, errs := granary(t, "import", form.target(dir), "--node", n.AdminURL())
			if status != 1 || !strings.Contains(errs, want+": ") || !strings.Contains(errs, string(layer.Digest)) || n.Status().Store.Blobs != 0 {
				t.Errorf("%d, %s; want %s", status, errs, want)
			}
		})
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
