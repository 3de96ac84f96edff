package trips

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/granary-oci/granary/simtest/programs"
)

// pushSigned pushes an index of two images and what refers to them: SBOMs and signatures as
// oras and as regctl attach them, where a registry lists referrers and where a tag does, and
// cosign's tags.
func pushSigned(t *testing.T, s *shelf) {
	amd64, arm64 := s.imageFor(t, "amd64"), s.imageFor(t, "arm64")
	index := s.manifest(t, "v1", indexType, map[string]any{"manifests": []any{entry(amd64, "amd64", nil), entry(arm64, "arm64", nil)}})
	sbom := s.attach(t, amd64, "application/spdx+json", `{"spdxVersion":"SPDX-2.3"}`)
	s.attach(t, sbom, oddType, "a signature of the SBOM")
	s.attach(t, index, oddType, "a signature of the index")
	s.regctl(t, "artifact", "put", "--artifact-type", "application/vnd.cyclonedx+json", "--annotation", "by=regctl",
		"--file", programs.Write(t, t.TempDir(), "bom", `{"bomFormat":"CycloneDX"}`), "--subject", s.image())
	s.regctl(t, "artifact", "put", "--artifact-type", oddType, "--platform", "linux/arm64",
		"--file", programs.Write(t, t.TempDir(), "statement", "by regctl of an image"), "--subject", s.image())
	for _, signed := range []ocispec.Descriptor{index, arm64} {
		for _, suffix := range []string{".sig", ".att", ".sbom"} {
			s.manifest(t, "sha256-"+signed.Digest.Encoded()+suffix, imageType, map[string]any{
				"config": s.blob(t, configType, `{"cosign":"`+suffix+signed.Digest.Encoded()+`"}`),
				"layers": []any{s.blob(t, "application/vnd.dev.cosign.simplesigning.v1+json", suffix+" of "+string(signed.Digest))},
			})
		}
	}
}

// attach attaches something to a manifest with oras.
func (s *shelf) attach(t *testing.T, to ocispec.Descriptor, artifactType, content string) ocispec.Descriptor {
	t.Helper()
	repo := orasRepository(t, s.Address+"/"+s.name)
	blob, err := oras.PushBytes(t.Context(), repo, "application/octet-stream", []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	desc, err := oras.PackManifest(t.Context(), repo, oras.PackManifestVersion1_1, artifactType, oras.PackManifestOptions{
		Subject: &to, Layers: []ocispec.Descriptor{blob}, ManifestAnnotations: map[string]string{"by": "oras"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

func orasRepository(t *testing.T, name string) *remote.Repository {
	t.Helper()
	repo, err := remote.NewRepository(name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	repo.SkipReferrersGC = true // registries do not let everybody delete old lists
	return repo
}
