package trips

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/programs"
)

const (
	imageType  = ocispec.MediaTypeImageManifest
	indexType  = ocispec.MediaTypeImageIndex
	configType = ocispec.MediaTypeImageConfig
	gzipType   = ocispec.MediaTypeImageLayerGzip
	zstdType   = ocispec.MediaTypeImageLayerZstd

	erofsType    = "application/vnd.erofs.layer.v1"
	squashfsType = "application/vnd.oci.image.layer.v1.squashfs"
	compatType   = "application/vnd.oci.image.compatibilities.v1+json"
	oddType      = "application/vnd.example.odd.v7"

	dockerImageType  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerListType   = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfigType = "application/vnd.docker.container.image.v1+json"
	dockerLayerType  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// item is something to carry: it is pushed to an empty repository, under v1.
type item struct {
	name string
	push func(t *testing.T, s *shelf)
	// only is the kind of registry that keeps it, "" for distribution and olareg.
	only string
}

var items = []item{
	{name: "nested", push: pushNested},
	{name: "docker", push: pushDocker},
	{name: "signed", push: pushSigned},
	{name: "chart", push: pushChart},
	{name: "artifact", push: pushArtifact},
	{name: "filesystems", push: pushFileSystems},
	{name: "zstd", push: pushZstd},
	{name: "compat", push: pushCompat},
	{name: "odd", push: pushOdd},
	{name: "odd-manifest", push: pushOddManifest, only: "crane"},
	{name: "sha512", push: pushSHA512, only: "olareg"},
}

// keeps reports whether a kind of registry keeps an item.
func (k kind) keeps(i item) bool { return i.only == k.name || i.only == "" && k.name != "crane" }

// files are the files of a layer.
func files(t *testing.T, name string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	programs.Write(t, dir, "etc/name", name)
	programs.Write(t, dir, "usr/share/text", string(bytes.Repeat([]byte(name+" and more. "), 4000)))
	return dir
}

// tarOf is a tar of files, compressed.
func tarOf(t *testing.T, dir string, compress func(io.Writer) (io.WriteCloser, error)) string {
	t.Helper()
	var b bytes.Buffer
	c, err := compress(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(c)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for _, closer := range []io.Closer{w, c} {
		if err := closer.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func gzipped(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }
func zstded(w io.Writer) (io.WriteCloser, error)  { return zstd.NewWriter(w) }

// config pushes the configuration of an image.
func (s *shelf) config(t *testing.T, mediaType, architecture string) ocispec.Descriptor {
	t.Helper()
	return s.blob(t, mediaType, `{"architecture":"`+architecture+`","os":"linux","config":{"Env":["ITEM=`+s.name+`"]},"rootfs":{"type":"layers","diff_ids":[]}}`)
}

// imageFor pushes an ordinary image of a layer, by its digest.
func (s *shelf) imageFor(t *testing.T, architecture string) ocispec.Descriptor {
	t.Helper()
	return s.manifest(t, "", imageType, map[string]any{
		"config": s.config(t, configType, architecture),
		"layers": []any{s.blob(t, gzipType, tarOf(t, files(t, architecture), gzipped))},
	})
}

// entry is an entry of an index, with what else stands in its platform.
func entry(desc ocispec.Descriptor, architecture string, more map[string]any) map[string]any {
	platform := map[string]any{"os": "linux", "architecture": architecture}
	for k, v := range more {
		platform[k] = v
	}
	return map[string]any{"mediaType": desc.MediaType, "digest": desc.Digest, "size": desc.Size, "platform": platform}
}

// pushNested pushes an index with another within.
func pushNested(t *testing.T, s *shelf) {
	inner := s.manifest(t, "", indexType, map[string]any{"manifests": []any{entry(s.imageFor(t, "arm64"), "arm64", nil), entry(s.imageFor(t, "riscv64"), "riscv64", nil)}})
	s.manifest(t, "v1", indexType, map[string]any{
		"manifests":   []any{entry(s.imageFor(t, "amd64"), "amd64", nil), inner},
		"annotations": map[string]string{"<>&": "\u2028"},
	})
}

// pushDocker pushes a manifest list with an image, both of Docker's types.
func pushDocker(t *testing.T, s *shelf) {
	image := s.manifest(t, "", dockerImageType, map[string]any{
		"config": s.config(t, dockerConfigType, "amd64"),
		"layers": []any{s.blob(t, dockerLayerType, tarOf(t, files(t, "docker"), gzipped))},
	})
	s.manifest(t, "v1", dockerListType, map[string]any{"manifests": []any{entry(image, "amd64", nil)}})
}

// pushChart pushes a chart with helm.
func pushChart(t *testing.T, s *shelf) {
	helm, dir := programs.Tool(t, "helm"), t.TempDir()
	programs.Write(t, dir, "chart/Chart.yaml", "apiVersion: v2\nname: "+filepath.Base(s.name)+"\nversion: v1\n")
	programs.Write(t, dir, "chart/templates/pod.yaml", "apiVersion: v1\nkind: Pod\n")
	programs.Run(t, nil, helm, "package", filepath.Join(dir, "chart"), "-d", dir)
	programs.Run(t, nil, helm, "push", "--plain-http", filepath.Join(dir, filepath.Base(s.name)+"-v1.tgz"), "oci://"+s.Address+"/"+filepath.Dir(s.name))
}

// pushArtifact pushes an artifact without a configuration with regctl.
func pushArtifact(t *testing.T, s *shelf) {
	dir := t.TempDir()
	s.regctl(t, "artifact", "put", "--artifact-type", oddType, "--file", programs.Write(t, dir, "a", "first"), "--file", programs.Write(t, dir, "b", "second"),
		"--file-media-type", "text/plain", "--file-media-type", oddType, "--file-title", s.image())
}

// pushFileSystems pushes an image of an EROFS, a squashfs and, as the draft has it, an EROFS
// that is compressed as a whole.
func pushFileSystems(t *testing.T, s *shelf) {
	dir := t.TempDir()
	erofs, squashfs := filepath.Join(dir, "erofs"), filepath.Join(dir, "squashfs")
	programs.Run(t, nil, programs.OfSystem(t, "mkfs.erofs"), erofs, files(t, "erofs"))
	programs.Run(t, nil, programs.OfSystem(t, "mksquashfs"), files(t, "squashfs"), squashfs, "-quiet", "-no-progress")
	read := func(file string) string {
		p, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(p)
	}
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.manifest(t, "v1", imageType, map[string]any{
		"config": s.config(t, configType, "amd64"),
		"layers": []any{
			s.blob(t, erofsType, read(erofs)),
			s.blob(t, squashfsType, read(squashfs)),
			s.blob(t, erofsType+"+zstd", string(w.EncodeAll([]byte(read(erofs)), nil))),
		},
	})
}

// pushZstd pushes an image of a layer in zstd over one in gzip, which is there twice.
func pushZstd(t *testing.T, s *shelf) {
	base := s.blob(t, gzipType, tarOf(t, files(t, "base"), gzipped))
	s.manifest(t, "v1", imageType, map[string]any{
		"config": s.config(t, configType, "amd64"),
		"layers": []any{base, s.blob(t, zstdType, tarOf(t, files(t, "zstd"), zstded)), base},
	})
}

// pushCompat pushes an index with compatibilities in a manifest (proposal I) and in a blob
// (proposal J).
func pushCompat(t *testing.T, s *shelf) {
	manifest := s.manifest(t, "", imageType, map[string]any{
		"config": s.blob(t, configType, `{"config":{"compatibilities":[{"oci.cpu.vendor":"GenuineIntel","tags":"intel"}]},"rootfs":{}}`),
		"layers": []any{},
	})
	blob := s.blob(t, compatType, `{"schemaVersion":"0.1.0","compatibilities":[{"oci.cpu.vendor":"AuthenticAMD","tags":"amd"}]}`)
	s.manifest(t, "v1", indexType, map[string]any{"manifests": []any{
		entry(s.imageFor(t, "amd64"), "amd64", map[string]any{"compat": manifest}),
		entry(s.imageFor(t, "arm64"), "arm64", map[string]any{"compat": blob}),
	}})
}

// pushOdd pushes an image with types and fields that nobody knows, and blobs that only these name.
func pushOdd(t *testing.T, s *shelf) {
	layer := s.blob(t, oddType, "an odd layer")
	odd := s.manifest(t, "", imageType, map[string]any{
		"config": s.blob(t, oddType+"+json", "no JSON"),
		"layers": []any{layer, s.blob(t, gzipType, tarOf(t, files(t, "odd"), gzipped)), s.blob(t, "text/x-empty", "")},
		"future": map[string]any{"parts": []any{s.blob(t, oddType, "a part of the future")}, "of": s.imageFor(t, "s390x")},
		"number": 1e3, "annotations": map[string]string{"a": "\u00e9"},
	})
	s.manifest(t, "v1", indexType, map[string]any{
		"manifests":    []any{entry(odd, "amd64", map[string]any{"mood": "odd"})},
		"artifactType": oddType, "unknown": []any{nil, true, map[string]any{"blob": layer}},
	})
}

// pushOddManifest pushes an index with a manifest of a type that nobody knows.
func pushOddManifest(t *testing.T, s *shelf) {
	odd := s.manifest(t, "", oddType, map[string]any{"things": []any{s.blob(t, oddType, "a thing")}})
	s.manifest(t, "v1", indexType, map[string]any{"manifests": []any{entry(s.imageFor(t, "amd64"), "amd64", nil), odd}})
}

// pushSHA512 pushes an image all of which is named by SHA-512, with a signature that is not.
func pushSHA512(t *testing.T, s *shelf) {
	image := s.manifestBy(t, digest.SHA512, "v1", imageType, map[string]any{
		"config": s.blobBy(t, digest.SHA512, configType, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`),
		"layers": []any{s.blobBy(t, digest.SHA512, gzipType, tarOf(t, files(t, "sha512"), gzipped))},
	})
	s.manifest(t, "", imageType, map[string]any{
		"subject": image, "artifactType": oddType, "config": s.blob(t, ocispec.MediaTypeEmptyJSON, "{}"),
		"layers": []any{s.blob(t, oddType, "a signature of SHA-512")},
	})
}
