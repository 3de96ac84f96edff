package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	bigFile   = "big"
	smallSize = 2 << 10
	inFolder  = 100 // small files in a directory
)

func smallFile(i int) string { return fmt.Sprintf("small/%d/%d", i/inFolder, i%inFolder) }

// makeTree makes the files in a directory.
func (l *lab) makeTree(dir string) error {
	noise := rand.NewChaCha8([32]byte{1})
	write := func(name string, size int) error {
		p := make([]byte, size)
		_, _ = noise.Read(p)
		return os.WriteFile(filepath.Join(dir, name), p, 0o644)
	}
	for i := range l.small {
		if i%inFolder == 0 {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, smallFile(i))), 0o755); err != nil {
				return err
			}
		}
		if err := write(smallFile(i), smallSize); err != nil {
			return err
		}
	}
	return write(bigFile, l.big)
}

// image is an image of one layer.
type image struct {
	manifest []byte
	blobs    map[string][]byte // by digest
}

// makeImage makes the image of a tree.
func makeImage(dir string) (*image, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(b.Bytes()), 0, int64(b.Len())), estargz.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	layer, err := io.ReadAll(blob)
	if err != nil {
		return nil, err
	}
	img := &image{blobs: make(map[string][]byte)}
	desc := img.add(ocispec.MediaTypeImageLayerGzip, layer)
	desc.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: string(blob.TOCDigest())}
	img.manifest, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: img.add(ocispec.MediaTypeImageConfig, []byte("{}")), Layers: []ocispec.Descriptor{desc},
	})
	return img, err
}

func (img *image) add(mediaType string, p []byte) ocispec.Descriptor {
	d := digest.FromBytes(p)
	img.blobs[string(d)] = p
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
}

// ServeHTTP serves the image as tree:v1.
func (img *image) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	what := q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]
	switch manifest := string(digest.FromBytes(img.manifest)); {
	case q.URL.Path == "/v2/":
	case strings.Contains(q.URL.Path, "/manifests/") && (what == "v1" || what == manifest):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", manifest)
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(img.manifest))
	case strings.Contains(q.URL.Path, "/blobs/") && img.blobs[what] != nil:
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(img.blobs[what]))
	default:
		http.NotFound(w, q)
	}
}
