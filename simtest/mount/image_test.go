package mount

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc/treetest"
)

// bigSize is the size of app/big, in bytes: more than the kernel reads ahead.
const bigSize = 24 << 20

// image is an image of two layers, a tar+gzip with everything that a layer may have, and
// an eStargz with a program and a large file, which also removes a file of the first.
type image struct {
	manifest []byte
	blobs    map[string][]byte // by digest
	unpacked string            // its tree, as tar unpacks it
}

func makeImage(t *testing.T) *image {
	t.Helper()
	img := &image{blobs: make(map[string][]byte), unpacked: t.TempDir()}
	from := t.TempDir()
	if err := treetest.Make(from, true); err != nil {
		t.Fatal(err)
	}
	first := command(t, "tar", "--create", "--format=posix", "--sparse", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--directory", from, ".")
	second := secondLayer(t)
	img.unpack(t, first)
	if err := os.Remove(filepath.Join(img.unpacked, "etc/text")); err != nil {
		t.Fatal(err)
	}
	img.unpack(t, second, "--exclude=.wh.*")
	img.finish(t, img.add(ocispec.MediaTypeImageLayerGzip, packed(t, first)), img.addStargz(t, second))
	return img
}

// finish makes the manifest of layers.
func (img *image) finish(t *testing.T, layers ...ocispec.Descriptor) {
	t.Helper()
	config := img.add(ocispec.MediaTypeImageConfig, []byte("{}"))
	var err error
	img.manifest, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// secondLayer is a tar. It says anew what directories are that tar changes the times of.
func secondLayer(t *testing.T) []byte {
	t.Helper()
	program, err := os.ReadFile(granaryBinary)
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, bigSize)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(big)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, mode int64, content []byte) {
		h := &tar.Header{Name: name, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX, Typeflag: tar.TypeReg}
		if strings.HasSuffix(name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	add("./", 0o755, nil)
	add("etc/", 0o755, nil)
	add("etc/.wh.text", 0, nil)
	add("app/", 0o755, nil)
	add("app/granary", 0o755, program)
	add("app/big", 0o600, big)
	add("a/", 0o700, nil)
	add("proc/", 0o555, nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (img *image) unpack(t *testing.T, layer []byte, more ...string) {
	t.Helper()
	args := append([]string{"--extract", "--xattrs", "--xattrs-include=*", "--xattrs-exclude=trusted.overlay.*", "--numeric-owner", "--same-owner", "--same-permissions", "--directory", img.unpacked}, more...)
	cmd := exec.Command("tar", args...)
	cmd.Stdin = bytes.NewReader(layer)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
}

func (img *image) add(mediaType string, p []byte) ocispec.Descriptor {
	d := digest.FromBytes(p)
	img.blobs[string(d)] = p
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
}

func (img *image) addStargz(t *testing.T, layer []byte) ocispec.Descriptor {
	t.Helper()
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))), estargz.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	p, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	desc := img.add(ocispec.MediaTypeImageLayerGzip, p)
	desc.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: string(blob.TOCDigest())}
	return desc
}

func packed(t *testing.T, layer []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(layer); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// command returns what a program prints.
func command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}
