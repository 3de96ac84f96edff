package trips

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/programs"
)

// kind is a kind of registry.
type kind struct {
	name  string
	start func(t *testing.T) *programs.Registry
	// lists says that it lists referrers, and does not leave that to a tag.
	lists bool
}

var kinds = []kind{
	{name: "distribution", start: startDistribution},
	{name: "olareg", start: startOlareg, lists: true},
	{name: "crane", start: startCrane},
}

func startDistribution(t *testing.T) *programs.Registry {
	t.Helper()
	return programs.Distribution(t, programs.Tool(t, "registry"), t.TempDir(), "")
}

func startOlareg(t *testing.T) *programs.Registry {
	t.Helper()
	address := programs.FreeAddress(t)
	return programs.Serving(t, address, programs.Tool(t, "olareg"), address)
}

func startCrane(t *testing.T) *programs.Registry {
	t.Helper()
	address := programs.FreeAddress(t)
	return programs.Serving(t, address, programs.Tool(t, "crane"), "registry", "serve", "--address", address)
}

// shelf is a repository that is filled.
type shelf struct {
	*programs.Registry
	name string // of the repository
}

// image is how clients call the image that is tagged v1.
func (s *shelf) image() string { return s.Address + "/" + s.name + ":v1" }

func (s *shelf) at() repository { return repository(s.URL + "/v2/" + s.name) }

// blob pushes a blob.
func (s *shelf) blob(t *testing.T, mediaType, content string) ocispec.Descriptor {
	t.Helper()
	return s.blobBy(t, digest.SHA256, mediaType, content)
}

func (s *shelf) blobBy(t *testing.T, algorithm digest.Algorithm, mediaType, content string) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: algorithm.FromString(content), Size: int64(len(content))}
	s.PushBlob(t, s.name, desc.Digest, desc.Size, bytes.NewReader([]byte(content)))
	return desc
}

// manifest pushes a manifest of any fields, under a tag or, if that is "", by its digest.
func (s *shelf) manifest(t *testing.T, tag, mediaType string, fields map[string]any) ocispec.Descriptor {
	t.Helper()
	return s.manifestBy(t, digest.SHA256, tag, mediaType, fields)
}

func (s *shelf) manifestBy(t *testing.T, algorithm digest.Algorithm, tag, mediaType string, fields map[string]any) ocispec.Descriptor {
	t.Helper()
	fields["schemaVersion"], fields["mediaType"] = 2, mediaType
	p, err := json.MarshalIndent(fields, " ", "   ") // laid out as nobody else does it
	if err != nil {
		t.Fatal(err)
	}
	p = append(p, '\n')
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: algorithm.FromBytes(p), Size: int64(len(p))}
	reference := string(desc.Digest)
	if tag != "" {
		reference = tag
	}
	if tag != "" && algorithm != digest.SHA256 { // distribution-spec 1.2 pushes a tag with a digest so
		reference = string(desc.Digest) + "?tag=" + tag
	}
	s.PushManifest(t, s.name, reference, mediaType, desc.Size, bytes.NewReader(p))
	return desc
}
