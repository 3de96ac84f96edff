package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Mirrors is a registry that is found in several places, in order of preference:
// what one cannot or will not give is asked of the next. The last is taken to be
// the registry itself, whose refusal is what callers see.
type Mirrors []*Registry

// Repository is [Registry.Repository].
func (m Mirrors) Repository(name string) MirroredRepository {
	all := make(MirroredRepository, len(m))
	for i, r := range m {
		all[i] = r.Repository(name)
	}
	return all
}

// Close is [Registry.Close].
func (m Mirrors) Close() {
	for _, r := range m {
		r.Close()
	}
}

// MirroredRepository is a repository of [Mirrors]. Its methods are those of
// [Repository].
type MirroredRepository []*Repository

// As is [Repository.As].
func (m MirroredRepository) As(authorization string) MirroredRepository {
	all := make(MirroredRepository, len(m))
	for i, p := range m {
		all[i] = p.As(authorization)
	}
	return all
}

// Resolve is [Repository.Resolve].
func (m MirroredRepository) Resolve(ctx context.Context, reference string) (Resolved, error) {
	return anyOf(ctx, m, func(p *Repository) (Resolved, error) { return p.Resolve(ctx, reference) })
}

// Manifest is [Repository.Manifest].
func (m MirroredRepository) Manifest(ctx context.Context, reference string) (Manifest, error) {
	return anyOf(ctx, m, func(p *Repository) (Manifest, error) { return p.Manifest(ctx, reference) })
}

// Stat is [Repository.Stat].
func (m MirroredRepository) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	return anyOf(ctx, m, func(p *Repository) (int64, error) { return p.Stat(ctx, d) })
}

// Get is [Repository.Get].
func (m MirroredRepository) Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error) {
	return anyOf(ctx, m, func(p *Repository) (*http.Response, error) { return p.Get(ctx, path, query, header) })
}

// Blob is [Repository.Blob]. What a mirror gives is checked as far as it can be,
// so that wrong bytes are its own failure.
func (m MirroredRepository) Blob() chunk.Source {
	if len(m) == 1 {
		return m[0].Blob()
	}
	all := make([]chunk.Source, len(m))
	for i, p := range m {
		all[i] = chunk.Verify("upstream "+p.registry.base.Host, p.Blob())
	}
	return chunk.First(all...)
}

// anyOf returns the first answer of several places. When there is none, the last
// place's error is first among what is returned.
func anyOf[T any](ctx context.Context, all MirroredRepository, ask func(*Repository) (T, error)) (T, error) {
	var v T
	var before []error
	for i, p := range all {
		var err error
		v, err = ask(p)
		switch {
		case err == nil || ctx.Err() != nil || len(all) == 1:
			return v, err
		case i == len(all)-1:
			return v, fmt.Errorf("%w (before: %v)", err, errors.Join(before...))
		}
		before = append(before, err)
	}
	return v, chunk.ErrNotFound
}
