package mount

import (
	"archive/tar"
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc/treetest"
)

// needTools skips a test without a program, and fails it where all should be there.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		_, err := exec.LookPath(name)
		if err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("MISSING: %v; CI has it", err)
		}
		if err != nil {
			t.Skipf("MISSING: %v", err)
		}
	}
}

// makeTree makes a directory with everything that a layer may have, and what tests look
// for.
func makeTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := treetest.Make(dir, true); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(granaryBinary)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "app/granary", program)
	write(t, dir, "app/big", noise(bigSize, 2))
	if err := os.Mkdir(filepath.Join(dir, "proc"), 0o555); err != nil {
		t.Fatal(err)
	}
	return dir
}

func noise(size int, seed byte) []byte {
	p := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func write(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
}

// The types of layers that are images of file systems.
const (
	erofsType    = "application/vnd.erofs.layer.v1"
	squashfsType = "application/vnd.oci.image.layer.v1.squashfs"
)

// erofs returns an image of a directory.
func erofs(t *testing.T, dir string, options ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	command(t, "mkfs.erofs", append(options, "--quiet", path, dir)...)
	return read(t, path)
}

func squashfs(t *testing.T, dir string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	command(t, "mksquashfs", dir, path, "-noappend", "-quiet", "-no-progress")
	return read(t, path)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// imageOf returns an image of one layer, which a directory was made into.
func imageOf(t *testing.T, dir, mediaType string, layer []byte) *image {
	t.Helper()
	img := &image{blobs: make(map[string][]byte), unpacked: dir}
	img.finish(t, img.add(mediaType, layer))
	return img
}

// tarOf returns a tar of entries; a content that begins with ">" is what a hardlink is
// to, and a name that ends with "/" a directory's.
func tarOf(t *testing.T, entries ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		name, content := e[0], e[1]
		h := &tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(1.2e9, 0), Typeflag: tar.TypeReg, Size: int64(len(content))}
		switch to, linked := strings.CutPrefix(content, ">"); {
		case linked:
			h.Typeflag, h.Linkname, h.Size, content = tar.TypeLink, to, 0, ""
		case strings.HasSuffix(name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o750
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// makeMixedImage is an image of five layers, each of another format, which refer to each
// other.
func makeMixedImage(t *testing.T) *image {
	t.Helper()
	img := &image{blobs: make(map[string][]byte)}
	over := t.TempDir() // over makeTree
	write(t, over, "app/small", []byte("small"))
	write(t, over, "sq/one", noise(1<<20, 3))
	write(t, over, "sq/two", []byte("two"))
	write(t, over, "usr/bin/1", []byte("replaced"))
	command(t, "mknod", filepath.Join(over, "usr/mixed0"), "c", "0", "0")
	command(t, "mknod", filepath.Join(over, "usr/bin/2"), "c", "0", "0")
	img.finish(t,
		img.addStargz(t, secondLayer(t)),
		img.add(erofsType, erofs(t, makeTree(t))),
		img.add(squashfsType, squashfs(t, over)),
		img.add(ocispec.MediaTypeImageLayer, tarOf(t,
			[2]string{"etc/text2", "its directory is not said"}, [2]string{"etc/fourth", ">etc/hello"},
			[2]string{"sq/.wh.two", ""}, [2]string{"usr/bin/.wh.3", ""}, [2]string{"opaque/", ""}, [2]string{"opaque/.wh..wh..opq", ""})),
		img.add(ocispec.MediaTypeImageLayerGzip, packed(t, tarOf(t,
			[2]string{".wh.empty", ""}, [2]string{"empty/", ""}, [2]string{"empty/full", "full"}, [2]string{"app/.wh.small", ""}, [2]string{"top", "top"}))),
	)
	return img
}
