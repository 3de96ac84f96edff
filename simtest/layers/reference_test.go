package main

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A reference names an image, one of several by its platform, or a layer.
func TestReferences(t *testing.T) {
	l := theLab(t)
	n := serve(t)
	img := l.images["estargz"]
	here, other := img.manifest, l.images["zstd"].manifest
	here.Platform = &ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	other.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	index, err := l.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{other, here},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.push(t.Context(), "estargz", l.images["zstd"]); err != nil {
		t.Fatal(err)
	}
	if err := l.push(t.Context(), "estargz", img); err != nil {
		t.Fatal(err)
	}
	if err := l.pushManifest(t.Context(), "estargz", "many", index.MediaType, index.Digest); err != nil {
		t.Fatal(err)
	}
	base := string(img.layers[0].Digest)
	for name, args := range map[string][]string{
		"tag":                {"estargz:v1"},
		"digest":             {"estargz@" + string(img.manifest.Digest)},
		"platform":           {"--platform", "linux/riscv64", "estargz:many"},
		"platform by digest": {"--platform", "linux/riscv64", "estargz@" + string(index.Digest)},
		"layer by number":    {"--layer", "1", "estargz:v1"},
		"layer of an image":  {"--layer", base, "estargz:v1"},
		"layer":              {"estargz@" + base},
	} {
		t.Run(name, func(t *testing.T) {
			if got := digest.FromBytes(n.mustRun(t, "cat", append(args, "/usr/bin/env")...)); string(got) != disk["/usr/bin/env"].digest {
				t.Errorf("cat: %s", got)
			}
			listing := parse(t, n.mustRun(t, "ls", append([]string{"-R", "--json"}, args...)...))
			_, changed := listing["/"+smallFile]
			if alone := strings.HasPrefix(name, "layer"); changed == alone {
				t.Errorf("%d files are listed; those of the last layer: %v", len(listing), changed)
			}
		})
	}
	if _, err := n.run(t.Context(), "ls", "--platform", "linux/arm", "estargz:many"); err == nil {
		t.Error("a platform that is not there was found")
	}
	if _, err := n.run(t.Context(), "ls", "--layer", "4", "estargz:v1"); err == nil {
		t.Error("a layer that is not there was found")
	}
}
