package graph_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
)

func TestTagsOfDigests(t *testing.T) {
	short, long := digest.FromString("x"), digest.SHA512.FromString("x")
	if got, want := ref.FallbackTag(short), "sha256-"+short.Encoded(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := ref.FallbackTag(long), "sha512-"+long.Encoded()[:64]; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	want := []string{"sha256-" + short.Encoded() + ".sig", "sha256-" + short.Encoded() + ".att", "sha256-" + short.Encoded() + ".sbom"}
	if got := graph.CosignTags(short); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := graph.CosignTags(long); len(got) > 0 {
		t.Errorf("tags that no registry takes: %q", got)
	}
}

// unavailable is a finder that cannot be asked for referrers, or for tags that end so.
type unavailable struct {
	*source
	tags string // "" for referrers
}

var errDown = errors.New("down")

func (u unavailable) Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	if u.tags == "" {
		return nil, errDown
	}
	return u.source.Referrers(ctx, d)
}

func (u unavailable) Resolve(ctx context.Context, tag string) (ocispec.Descriptor, error) {
	if u.tags != "" && strings.HasSuffix(tag, u.tags) {
		return ocispec.Descriptor{}, errDown
	}
	return u.source.Resolve(ctx, tag)
}

func TestReferrersThatCannotBeAskedForAreNotNone(t *testing.T) {
	s := newSource()
	image := s.image("i")
	for _, tags := range []string{"", ".sig", image.Digest.Encoded()} {
		_, err := graph.Walk(t.Context(), s, []ocispec.Descriptor{image}, graph.Options{Referrers: unavailable{s, tags}})
		if !errors.Is(err, errDown) || !strings.Contains(err.Error(), string(image.Digest)) {
			t.Errorf("%q: %v", tags, err)
		}
	}
}

// TestWhatATagResolvedToIsNotAskedForAgain, if the manifest came with it.
func TestWhatATagResolvedToIsNotAskedForAgain(t *testing.T) {
	s := newSource()
	image, sig := s.image("i"), s.manifest("sig", imageType, fields{})
	sig.Data = s.manifests[sig.Digest]
	s.tags["sha256-"+image.Digest.Encoded()+".sig"] = sig
	g := walk(t, s, graph.Options{Referrers: s}, image)
	if got, want := s.told(g), "i.config i.layer [i] [sig]"; got != want || !slices.Equal(s.asked, []string{"manifest i"}) {
		t.Errorf("found %s, asked for %q", got, s.asked)
	}
}
