package layout_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/layout"
	"github.com/granary-oci/granary/proxy/upstream"
)

func inArchive(path string, r *reports) *layout.Layout {
	return layout.New(host, layout.NewArchive(path, r.add), r.add)
}

// packed packs a directory into a tar.
func packed(t *testing.T, dir string) (path string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return written(t, b.Bytes())
}

func written(t *testing.T, p []byte) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "layout.tar")
	if err := os.WriteFile(path, p, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// item is a file of a tar.
type item struct {
	tar.Header
	content string
}

func file(name, content string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644}, content}
}

func link(kind byte, name, to string) item {
	return item{tar.Header{Typeflag: kind, Name: name, Linkname: to}, ""}
}

// tarOf returns a tar of files.
func tarOf(t *testing.T, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(i.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A layout with one manifest.
const (
	theManifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	theMarker   = `{"imageLayoutVersion":"1.0.0"}`
)

var theDigest = digest.FromString(theManifest)

func blobFile(content string) item { return file("blobs/sha256/"+theDigest.Encoded(), content) }

// indexOf lists the manifest with a size.
func indexOf(size string) item {
	return file("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"`+string(theDigest)+`","size":`+size+`,"annotations":{"org.opencontainers.image.ref.name":"v1"}}]}`)
}

func TestArchivesAsOthersWriteThem(t *testing.T) {
	marker, index, blob := file("oci-layout", theMarker), indexOf("88"), blobFile(theManifest)
	dotted := func(i item) item { i.Name = "./" + i.Name; return i }
	for name, items := range map[string][]item{
		"index.json first":              {marker, index, blob},
		"index.json last":               {blob, marker, index},
		"with directories":              {{Header: tar.Header{Typeflag: tar.TypeDir, Name: "blobs/", Mode: 0o755}}, marker, index, blob},
		"names that begin with a dot":   {dotted(marker), dotted(index), dotted(blob)},
		"other files and links":         {file("manifest.json", "[]"), link(tar.TypeSymlink, "repositories", "/etc/passwd"), marker, index, blob},
		"a file that comes again later": {marker, file("index.json", "{}"), blobFile("wrong"), index, blob},
	} {
		m, err := inArchive(written(t, tarOf(t, items...)), new(reports)).Repository("app").Manifest(t.Context(), "v1")
		if err != nil || string(m.Bytes) != theManifest {
			t.Errorf("%s: %q, %v", name, m.Bytes, err)
		}
	}
}

// TestBadArchives: the error names the archive, and the file in it or the digest.
func TestBadArchives(t *testing.T) {
	marker, index, blob := file("oci-layout", theMarker), indexOf("88"), blobFile(theManifest)
	good := tarOf(t, marker, blob, index)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(good)
	_ = w.Close()
	path := "/blobs/sha256/" + theDigest.Encoded()
	for want, p := range map[string][]byte{
		": the archive cannot be read beyond its first 0 files: ":         packed.Bytes(),
		": the archive cannot be read beyond its first 2 files: ":         good[:2*512+2*512+100],
		`: the archive ends within "blobs/sha256/` + theDigest.Encoded():  good[:2*512+512+50],
		"/index.json: the file is missing":                                tarOf(t, marker, blob),
		"/oci-layout: the file is missing":                                tarOf(t, index, blob),
		`/oci-layout: imageLayoutVersion is "9"`:                          tarOf(t, file("oci-layout", `{"imageLayoutVersion":"9"}`), index, blob),
		"/index.json: unexpected end":                                     tarOf(t, marker, file("index.json", "{"), blob),
		`: "../index.json" leads out`:                                     tarOf(t, marker, index, blob, file("../index.json", "{}")),
		`: "blobs/../../x" leads out`:                                     tarOf(t, marker, index, blob, file("blobs/../../x", "{}")),
		`: "/index.json" leads out`:                                       tarOf(t, marker, index, blob, file("/index.json", "{}")),
		`: "blobs/sha256/` + theDigest.Encoded() + `" is no regular file`: tarOf(t, marker, index, link(tar.TypeSymlink, blob.Name, "/etc/passwd")),
		`: "index.json" is no regular file`:                               tarOf(t, marker, blob, link(tar.TypeLink, "index.json", "oci-layout")),
		path + ": corrupt: the file has 88 bytes, and 87 by index.json":   tarOf(t, marker, indexOf("87"), blob),
		path: tarOf(t, marker, index, blobFile(strings.ToUpper(theManifest))),
	} {
		file := written(t, p)
		m, err := inArchive(file, new(reports)).Repository("app").Manifest(t.Context(), "v1")
		if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q, %v; want %s", m.Bytes, err, want)
		}
		if strings.HasPrefix(want, path) && !chunk.IsCorrupt(err) {
			t.Errorf("%v is nobody's fault", err)
		}
	}
	if _, err := inArchive(written(t, tarOf(t, marker, index)), new(reports)).Repository("app").Manifest(t.Context(), "v1"); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("without the blob: %v", err)
	}
	if err := inArchive(filepath.Join(t.TempDir(), "none.tar"), new(reports)).Check(t.Context()); !upstream.Unreachable(err) {
		t.Errorf("that is not there: %v", err)
	}
	if err := inArchive(t.TempDir(), new(reports)).Check(t.Context()); err == nil || upstream.Unreachable(err) {
		t.Errorf("that is a directory: %v", err)
	}
}

// TestAnArchiveThatIsReplaced is read anew, by those who had read the earlier one too.
func TestAnArchiveThatIsReplaced(t *testing.T) {
	marker, index, blob := file("oci-layout", theMarker), indexOf("88"), blobFile(theManifest)
	path := written(t, tarOf(t, marker, file("index.json", `{"schemaVersion":2}`)))
	l := inArchive(path, new(reports))
	if _, err := l.Repository("app").Manifest(t.Context(), "v1"); !errors.Is(err, chunk.ErrNotFound) {
		t.Fatal(err)
	}
	if err := os.Rename(written(t, tarOf(t, blob, marker, index)), path); err != nil {
		t.Fatal(err)
	}
	if m, err := l.Repository("app").Manifest(t.Context(), "v1"); err != nil || string(m.Bytes) != theManifest {
		t.Errorf("%q, %v", m.Bytes, err)
	}
}
