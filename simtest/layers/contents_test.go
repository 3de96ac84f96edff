package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// moved reports what of blobs leaves the registry while do works.
func (l *lab) moved(do func()) int64 {
	before := l.registry.gate.traffic()
	do()
	return l.registry.gate.since(before).blobs
}

// checkFile reads a file with the command, and compares it with that on the disk.
func (n *node) checkFile(t *testing.T, ref, name string) {
	t.Helper()
	if got := digest.FromBytes(n.mustRun(t, "cat", ref, "/"+name)); string(got) != disk["/"+name].digest {
		t.Errorf("cat %s /%s: %s, want %s", ref, name, got, disk["/"+name].digest)
	}
}

// The second image that has the same file moves nothing for it.
func TestTheSameFileInAnotherFormat(t *testing.T) {
	l := theLab(t)
	n := serve(t)
	for _, name := range []string{smallFile, largeFile} {
		n.checkFile(t, "estargz:v1", name)
	}
	for _, of := range []string{"zstd-stargz", "zstd-storage", "gzip"} {
		n.mustRun(t, "ls", of+":v1") // moves the table, or makes the index
		for _, name := range []string{smallFile, largeFile} {
			if moved := l.moved(func() { n.checkFile(t, of+":v1", name) }); moved > 0 {
				t.Errorf("%s of %s: %d bytes left the registry, though estargz's had been read", name, of, moved)
			}
		}
	}
}

// cluster starts two members of a cluster.
func cluster(t *testing.T) (a, b *node) {
	t.Helper()
	l := theLab(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the secret of these two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := l.startMember(t.Context(), secret)
	running(t, a, err)
	b, err = l.startMember(t.Context(), secret, a)
	running(t, b, err)
	for _, n := range []*node{a, b} {
		n.eventually(t, "both are members", func() bool {
			out, err := l.run(t.Context(), "peers", "--node", n.admin)
			return err == nil && bytes.Count(out, []byte("\n")) >= 2
		})
	}
	return a, b
}

// What a member has read of a file nobody else reads from the registry.
func TestTheSameFileOnAPeer(t *testing.T) {
	l := theLab(t)
	a, b := cluster(t)
	for _, name := range []string{smallFile, largeFile, "usr/bin/bash"} {
		a.checkFile(t, "estargz:v1", name)
	}
	b.mustRun(t, "ls", "zstd-stargz:v1")
	for _, name := range []string{smallFile, largeFile, "usr/bin/bash"} {
		if moved := l.moved(func() { b.checkFile(t, "zstd-stargz:v1", name) }); moved > 0 {
			t.Errorf("%s: %d bytes left the registry", name, moved)
		}
	}
}

// single makes an image of one layer, and pushes it.
func (l *lab) single(t *testing.T, repository, mediaType string, layer []byte, annotations map[string]string) *image {
	t.Helper()
	desc, err := l.addBytes(mediaType, layer)
	if err != nil {
		t.Fatal(err)
	}
	desc.Annotations = annotations
	img := &image{name: repository, layers: []ocispec.Descriptor{desc}}
	l.finishAndPush(t, img, desc.Digest)
	return img
}

// finishAndPush makes an image of the layers that it has.
func (l *lab) finishAndPush(t *testing.T, img *image, diffIDs ...digest.Digest) {
	t.Helper()
	if err := l.finish(img, diffIDs); err != nil {
		t.Fatal(err)
	}
	if err := l.push(t.Context(), img.name, img); err != nil {
		t.Fatal(err)
	}
}

// padding is more than is read of a layer to list it.
const padding = 3 << 20

// stargzOf makes a layer of one file, whose table may have another name for it, and
// another digest, and of as much padding that the table does not tell of.
func stargzOf(t *testing.T, name, listedName, content string, listed digest.Digest, pad int) []byte {
	t.Helper()
	var w stargzWriter
	at, err := w.file(name, content)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, pad)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	if _, err := w.file("padding", string(noise)); err != nil {
		t.Fatal(err)
	}
	table := fmt.Sprintf(`{"version":1,"entries":[{"name":%q,"type":"reg","size":%d,"modtime":"2025-10-09T08:53:20Z","mode":420,"digest":%q,"offset":%d,"chunkDigest":%q}]}`,
		listedName, len(content), listed, at, listed)
	layer, err := w.finish(int64(len(table)), strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// Whoever knows the digest of a private file, and can push a layer that names it, has
// not got the file.
func TestADigestOpensNothing(t *testing.T) {
	l := theLab(t)
	a, b := cluster(t)
	secret := strings.Repeat("the secret of the private repository\n", 100)
	private := l.single(t, "private/app", gzipType, stargzOf(t, "secret", "secret", secret, digest.FromString(secret), padding), nil)
	public := l.single(t, "public/app", gzipType, stargzOf(t, "stolen", "stolen", strings.Repeat("x", len(secret)), digest.FromString(secret), padding), nil)
	credentials := http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(readerName+":"+readerPassword))}}
	read := func(n *node, repository string, img *image, path string, header http.Header) (int, string) {
		resp, err := get(t.Context(), n.layer(repository, "file/"+string(img.layers[0].Digest), "path="+path), header)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		p, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(p)
	}
	for range 2 {
		for _, n := range []*node{a, b} {
			if status, got := read(n, "private/app", private, "secret", credentials); status != http.StatusOK || got != secret {
				t.Fatalf("its reader got %d, %.100q", status, got)
			}
		}
		for _, n := range []*node{a, b} {
			if status, got := read(n, "private/app", private, "secret", nil); status != http.StatusUnauthorized {
				t.Errorf("somebody else got %d, %.100q", status, got)
			}
			if status, got := read(n, "public/app", public, "stolen", nil); status != http.StatusBadGateway || strings.Contains(got, "the secret of") {
				t.Errorf("by a layer that names its digest somebody else got %d, %.100q", status, got)
			}
			// Who may read both gets what the table promises.
			if status, got := read(n, "public/app", public, "stolen", credentials); status == http.StatusOK && got != secret {
				t.Errorf("its reader got %d, %.100q by another layer", status, got)
			}
		}
	}
}
