package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/programs"
	"github.com/granary-oci/granary/toc/recipe"
)

// TestRecipes makes layers again that real programs have written, each in its own way, or is told
// why it cannot. What they write changes with their versions: testdata of toc/recipe has what others wrote.
func TestRecipes(t *testing.T) {
	dir := t.TempDir()
	build := startBuildKit(t, programs.Write(t, dir, "buildkitd.toml", ""))
	packs := filepath.Join(dir, "layer.tar")
	if err := os.WriteFile(packs, layerTar(t, "content", lines(40_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		make    func(t *testing.T) []byte
		encoder recipe.Encoder // none: it cannot be made again
	}{
		{"BuildKit", func(t *testing.T) []byte { return built(t, build, "gzip") }, recipe.Encoder{Family: recipe.Go, Level: 6}},
		{"eStargz by BuildKit", func(t *testing.T) []byte { return built(t, build, "estargz") }, recipe.Encoder{Family: recipe.Go, Level: 6}},
		{"skopeo", func(t *testing.T) []byte { return copied(t, build) }, recipe.Encoder{Family: recipe.Pgzip117, Level: 5}}, // Debian 12's
		{"crane", func(t *testing.T) []byte { return craneLayer(t, packs) }, recipe.Encoder{Family: recipe.Go, Level: 1}},
		{"gzip", func(t *testing.T) []byte {
			return []byte(programs.Run(t, nil, programs.OfSystem(t, "gzip"), "-c", packs))
		}, recipe.Encoder{}},
		{"python", func(t *testing.T) []byte {
			out := filepath.Join(t.TempDir(), "layer.tar.gz")
			programs.Run(t, nil, programs.OfSystem(t, "python3"), "-c", "import shutil, tarfile; tarfile.open('"+out+"', 'w:gz').add('"+packs+"')")
			return read(t, out)
		}, recipe.Encoder{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			blob := c.make(t)
			r, err := recipe.Find(t.Context(), bytes.NewReader(blob), int64(len(blob)))
			if c.encoder == (recipe.Encoder{}) {
				if !errors.Is(err, recipe.ErrNone) {
					t.Errorf("error %v, want %v", err, recipe.ErrNone)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Encoder != c.encoder {
				t.Errorf("it is %v, want %v", r.Encoder, c.encoder)
			}
			checkMade(t, r, blob)
		})
	}
}

func checkMade(t *testing.T, r *recipe.Recipe, blob []byte) {
	t.Helper()
	unpacked, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := r.Rebuild(t.Context(), &again, unpacked); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bytes(), blob) {
		t.Errorf("%d bytes of %d are not the same", again.Len(), len(blob))
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// lines is text that compresses as that of layers does: more than 1 MiB, for 40,000 lines.
func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line %d says %x and %c\n", i, i*2654435761%65521, rune(0x80+i*7919%1900))
	}
	return b.String()
}

func layerTar(t *testing.T, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// one returns a layout that BuildKit has made of one file.
func (b builder) one(t *testing.T, compression string) (layout string) {
	t.Helper()
	return b(t, "FROM scratch\nCOPY added /added\n", lines(40_000), ",force-compression=true,compression="+compression)
}

// onlyLayer returns where the layer of a layout's only image is.
func onlyLayer(t *testing.T, layout string) string {
	t.Helper()
	var index ocispec.Index
	var manifest ocispec.Manifest
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	readJSON(t, filepath.Join(layout, "blobs/sha256", index.Manifests[0].Digest.Encoded()), &manifest)
	return filepath.Join(layout, "blobs/sha256", manifest.Layers[0].Digest.Encoded())
}

func built(t *testing.T, build builder, compression string) []byte {
	t.Helper()
	return read(t, onlyLayer(t, build.one(t, compression)))
}

// copied is a layer that skopeo has compressed as it copied the image.
func copied(t *testing.T, build builder) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "layout")
	programs.Run(t, nil, programs.OfSystem(t, "skopeo"), "--insecure-policy", "copy", "--quiet", "--dest-compress", "oci:"+build.one(t, "uncompressed"), "oci:"+to)
	return read(t, onlyLayer(t, to))
}

// craneLayer has crane lay a tar on an empty image, and returns what it made of it.
func craneLayer(t *testing.T, packs string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image.tar")
	programs.Run(t, nil, programs.Tool(t, "crane"), "append", "--oci-empty-base", "-f", packs, "-t", "recipe:1", "-o", out)
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, ".tar.gz") {
			p, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
}
