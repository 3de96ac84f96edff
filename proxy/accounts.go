package proxy

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
)

// What leaves the node and what comes to it is counted image by image. A blob is part of many images: what is read of it counts
// for the one that was asked for last, of those that name it, since whoever reads a blob has asked for a manifest before.

// Image is what bytes of blobs are counted for.
type Image struct {
	ref.Repository
	Tag string // by which it was asked for, "" if that is not known
	// Digest is that of the image's index, or manifest. It is "" if no manifest that names the blob was asked for here lately, as
	// where a blob comes for another member's client.
	Digest digest.Digest
}

// image returns the image that a blob is read for.
func (p *Repository) image(ctx context.Context, blob digest.Digest) Image {
	recent := p.registry.reads.of(p.Repository)
	a, _ := p.registry.namedBy(ctx, recent, readingKey{p.Repository, blob})
	if a.manifest == "" {
		return Image{Repository: p.Repository}
	}
	a = p.registry.rootOf(ctx, recent, a)
	return Image{p.Repository, a.tag, a.manifest}
}

// imageOf returns the image that a manifest is of.
func (p *Repository) imageOf(ctx context.Context, manifest digest.Digest) Image {
	a, recent := asked{Repository: p.Repository, manifest: manifest}, p.registry.reads.of(p.Repository)
	for _, known := range recent {
		if known.manifest == manifest {
			a = known
		}
	}
	a = p.registry.rootOf(ctx, recent, a)
	return Image{p.Repository, a.tag, a.manifest}
}

// fromMembers and fromAnybody say what comes from which source is counted.
func fromMembers(source string) bool { return source == "peer" }
func fromAnybody(string) bool        { return true }

// tallied returns src with what comes from some sources counted. Chunks pass it once on their way into the node: an upstream's are counted where
// they come, for what this node gets as an owner is read by its own readers, too, and by other members'.
func (p *Repository) tallied(src chunk.Source, of func(source string) bool) chunk.Source {
	return tally{src, p, of}
}

type tally struct {
	src chunk.Source
	p   *Repository
	of  func(source string) bool
}

// Get implements [chunk.Source].
func (s tally) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, s, ref)
}

// GetRun implements [chunk.Runner].
func (s tally) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	image := Image{}
	asked, from := chunk.WithOrigin(ctx)
	return chunk.GetRun(asked, s.src, refs, func(ref chunk.Ref, p []byte) error {
		chunk.SetOrigin(ctx, from())
		if source := chunk.OriginOf(asked); s.of(source) {
			if image == (Image{}) {
				image = s.p.image(ctx, ref.Blob)
			}
			s.p.registry.cfg.Came(image, source, int64(len(p)))
		}
		return yield(ref, p)
	})
}
