package layout

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// A tar may have images in a form that is older than layouts: as `docker save` wrote them before
// Docker 25, and podman save, skopeo, crane and others do. manifest.json then lists images, and
// names for each its config, its tags, and its layers in the order of the config's diff_ids. It
// has no manifests, so each image gets one, always the same: of the config and the layers as
// they lie in the archive. A layer that is not compressed is the blob that its diff_id names.

const savedFile = "manifest.json"

// Limits of what manifest.json may name.
const (
	maxSavedLayers = 1 << 17  // of all images together
	maxConfigs     = 64 << 20 // bytes of all configs together
)

// dockerHost is the registry of images whose names have none.
const dockerHost = "docker.io"

// savedImage is an entry of manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// isSaved reports whether an archive has images in the older form, and no layout, which
// Docker since 25 writes beside it.
func (all *found) isSaved() bool {
	has := func(name string) bool { _, ok := all.files[name]; return ok }
	return has(savedFile) && !has(ocispec.ImageIndexFile) && !has(ocispec.ImageLayoutFile)
}

// saved is what the images of an archive become.
type saved struct {
	archive *archive
	found   *found
	from    io.ReaderAt
	key     string // of what was found out before

	files   map[string]span
	configs map[string]savedConfig // by entry
	bytes   int64                  // of configs
	layers  int
}

type savedConfig struct {
	ocispec.Descriptor
	diffIDs []digest.Digest
}

// saved returns the layout that the images of an archive make. a.mu is held.
func (a *archive) saved(all *found, file io.ReaderAt, key string) (map[string]span, error) {
	s := &saved{archive: a, found: all, from: file, key: key, files: make(map[string]span), configs: make(map[string]savedConfig)}
	var images list[savedImage]
	_, raw, err := s.read(savedFile, maxIndex)
	if err == nil {
		err = json.Unmarshal(raw, &images)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", savedFile, err)
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	for i, image := range images {
		desc, err := s.image(image)
		if err != nil {
			return nil, fmt.Errorf("%s: image %d: %w", savedFile, i, err)
		}
		index.Manifests = append(index.Manifests, named(desc, image.RepoTags)...)
		if len(index.Manifests) > maxNamed {
			return nil, fmt.Errorf("%s: it has more than %d tags", savedFile, maxNamed)
		}
	}
	s.files[ocispec.ImageLayoutFile] = made(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	s.files[ocispec.ImageIndexFile] = made(index)
	return s.files, nil
}

// named returns the entries of index.json for an image: one for each tag, and one without a
// name if there is none that a registry could have.
func named(desc ocispec.Descriptor, tags []string) (entries []ocispec.Descriptor) {
	for _, tag := range tags {
		if n := fullName(tag, dockerHost); n.tag != "" {
			e := desc
			e.Annotations = map[string]string{ocispec.AnnotationRefName: ref.Reference{Repository: n.repository, Tag: n.tag}.String()}
			entries = append(entries, e)
		}
	}
	if entries == nil {
		entries = []ocispec.Descriptor{desc}
	}
	return entries
}

// made is a file that manifest.json makes.
func made(content any) span {
	p, err := json.Marshal(content)
	if err != nil {
		panic(err) // there is nothing in these that is not encoded
	}
	return span{entry: savedFile, size: int64(len(p)), made: p}
}

// read reads a small file of the archive.
func (s *saved) read(name string, limit int64) (span, []byte, error) {
	at, err := s.found.find(name)
	if err != nil {
		return at, nil, err
	}
	if at.size > limit {
		return at, nil, fmt.Errorf("%q has more than %d bytes", name, limit)
	}
	p, err := io.ReadAll(at.from(s.from))
	return at, p, err
}

// image makes the manifest of an image, and returns its descriptor.
func (s *saved) image(image savedImage) (desc ocispec.Descriptor, err error) {
	config, err := s.config(image.Config)
	if err != nil {
		return desc, err
	}
	if len(image.Layers) != len(config.diffIDs) {
		return desc, fmt.Errorf("it has %d layers, and %d by its config %q (%s)", len(image.Layers), len(config.diffIDs), image.Config, config.Digest)
	}
	if s.layers += len(image.Layers); s.layers > maxSavedLayers {
		return desc, fmt.Errorf("with it the images have more than %d layers", maxSavedLayers)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config.Descriptor, Layers: make([]ocispec.Descriptor, len(image.Layers)),
	}
	for i, name := range image.Layers {
		if m.Layers[i], err = s.layer(name, config.diffIDs[i]); err != nil {
			return desc, err
		}
	}
	manifest := made(m)
	desc = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(manifest.made), Size: manifest.size}
	if desc.Size > upstream.MaxManifestSize {
		return desc, fmt.Errorf("its manifest would have more than %d bytes", upstream.MaxManifestSize)
	}
	return desc, s.blob(desc, manifest)
}

// namedByDigest is a file's name that gives the digest of its content, as those of configs do,
// and with crane those of compressed layers.
var namedByDigest = regexp.MustCompile(`(?:^|/)(?:sha256:)?([0-9a-f]{64})(?:\.json|\.tar|\.tgz|(?:\.tar)?\.(?:gz|zst))?$`)

// digestIn returns the digest that a file's name gives, or "".
func digestIn(name string) digest.Digest {
	if m := namedByDigest.FindStringSubmatch(name); m != nil {
		return digest.NewDigestFromEncoded(digest.SHA256, m[1])
	}
	return ""
}

// config reads a config, unless that was done for another image.
func (s *saved) config(name string) (c savedConfig, err error) {
	at, raw, err := s.read(name, upstream.MaxManifestSize)
	if err != nil {
		return c, err
	}
	if c, known := s.configs[at.entry]; known {
		return c, nil
	}
	if s.bytes += at.size; s.bytes > maxConfigs {
		return c, fmt.Errorf("with %q the configs have more than %d bytes", name, maxConfigs)
	}
	c.Descriptor = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: at.size}
	if want := digestIn(name); want != "" && want != c.Digest {
		return c, s.archive.corrupt(at.entry, want, at.size, "the file does not have this digest")
	}
	var content ocispec.Image
	if err := json.Unmarshal(raw, &content); err != nil {
		return c, fmt.Errorf("config %q (%s): %w", name, c.Digest, err)
	}
	for _, d := range content.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return c, fmt.Errorf("config %q (%s): diff_ids: %w", name, c.Digest, err)
		}
	}
	c.diffIDs = content.RootFS.DiffIDs
	s.configs[at.entry] = c
	return c, s.blob(c.Descriptor, at)
}

// blob adds an entry of the archive as a blob.
func (s *saved) blob(desc ocispec.Descriptor, at span) error {
	name := blobPath(desc.Digest)
	if other, there := s.files[name]; !there {
		s.files[name] = at
	} else if other.size != at.size {
		return s.archive.corrupt(at.entry, desc.Digest, at.size, fmt.Sprintf("the file has %d bytes, and %q of the same digest %d", at.size, other.entry, other.size))
	}
	return nil
}

// layer adds a layer.
func (s *saved) layer(name string, diffID digest.Digest) (desc ocispec.Descriptor, err error) {
	at, err := s.found.find(name)
	if err != nil {
		return desc, fmt.Errorf("layer %s: %w", diffID, err)
	}
	desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: at.size}
	switch how := compressed(io.NewSectionReader(s.from, at.base, at.size)); how {
	case "":
	case "gzip", "zstd":
		desc.MediaType += "+" + how
		if desc.Digest, err = s.sum(at, diffID, how); err != nil {
			return desc, err
		}
	default:
		return desc, fmt.Errorf("layer %s: %q is compressed with %s, for which there is no media type", diffID, name, how)
	}
	return desc, s.blob(desc, at)
}

// sum returns the digest of a compressed layer: the one that its name gives, for that is
// compared with what it has when it is read, or what was found out.
func (s *saved) sum(at span, diffID digest.Digest, how string) (digest.Digest, error) {
	if d := digestIn(at.entry); d != "" && d != diffID {
		return d, nil
	}
	if d, known := s.archive.sums.of(s.key)[at.base]; known {
		return d, nil
	}
	return "", &unsummed{s.key, at, diffID, how}
}
