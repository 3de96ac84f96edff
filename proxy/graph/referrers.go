package graph

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/ref"
)

// Finder tells what refers to a manifest without its knowing. [ErrNotFound] stands for
// nothing; any other error ends the walk. It may be asked several things at once.
type Finder interface {
	// Referrers returns the manifests that have d as their subject, as far as the source
	// keeps a list of them (distribution-spec, "Listing Referrers").
	Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error)
	// Resolve returns what a tag names. If the descriptor has the manifest as its data, it
	// is not asked for again.
	Resolve(ctx context.Context, tag string) (ocispec.Descriptor, error)
}

// CosignTags are the tags under which cosign keeps signatures, attestations and SBOMs of d.
// A digest of SHA-512 is too long for them.
func CosignTags(d digest.Digest) (tags []string) {
	for _, suffix := range []string{".sig", ".att", ".sbom"} {
		if tag := string(d.Algorithm()) + "-" + d.Encoded() + suffix; ref.IsTag(tag) {
			tags = append(tags, tag)
		}
	}
	return tags
}

// discover asks for all that refers to a manifest.
func discover(ctx context.Context, f Finder, d digest.Digest) (found []Reference, err error) {
	listed, err := f.Referrers(ctx, d)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("referrers: %w", err)
	}
	for _, desc := range listed {
		found = append(found, Reference{Descriptor: desc, Place: Place{Role: Referrer}, Malformed: !wellFormed(desc)})
	}
	for _, tag := range append([]string{ref.FallbackTag(d)}, CosignTags(d)...) {
		desc, err := f.Resolve(ctx, tag)
		if errors.Is(err, ErrNotFound) || err == nil && tag == ref.FallbackTag(d) && !IsIndex(desc.MediaType) {
			continue // what is no index lists nothing
		}
		if err != nil {
			return nil, fmt.Errorf("tag %s: %w", tag, err)
		}
		found = append(found, Reference{Descriptor: desc, Place: Place{Tagged, tag}, Malformed: !wellFormed(desc)})
	}
	return found, nil
}
