package mount

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Of the files of a plain image.
const (
	plainFiles = 8
	plainSize  = 4<<20 + 1234
)

// plainImage is an image of one tar, of files of noise in which no digest is but the
// layer's own: what is read of them is as right as the chunks it comes in.
func plainImage(t *testing.T) (img *image, files map[string][sha256.Size]byte) {
	t.Helper()
	files = make(map[string][sha256.Size]byte)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for i := range plainFiles {
		p := make([]byte, plainSize)
		_, _ = rand.NewChaCha8([32]byte{'p', byte(i)}).Read(p)
		name := fmt.Sprint("file-", i)
		files[name] = sha256.Sum256(p)
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: plainSize, ModTime: time.Unix(1e9, 0), Typeflag: tar.TypeReg})
		if _, werr := w.Write(p); err != nil || werr != nil {
			t.Fatal(errors.Join(err, werr))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img = &image{blobs: make(map[string][]byte)}
	img.finish(t, img.add(ocispec.MediaTypeImageLayer, layer.Bytes()))
	return img, files
}

// read reads a file from an offset on, and returns what that of it is.
func readFrom(f *os.File, off int64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = io.Copy(h, io.NewSectionReader(f, off, 1<<40))
	h.Sum(sum[:0])
	return sum, err
}

// checkFile reads a file of a mount.
func checkFile(dir, name string, want [sha256.Size]byte) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	if got, err := readFrom(f, 0); err != nil || got != want {
		return fmt.Errorf("%s: %x…, want %x…: %w", name, got[:4], want[:4], err)
	}
	return nil
}

// checkFiles reads all files of a mount at once.
func checkFiles(t *testing.T, dir string, files map[string][sha256.Size]byte) {
	t.Helper()
	var all sync.WaitGroup
	for name, want := range files {
		all.Go(func() {
			if err := checkFile(dir, name, want); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
