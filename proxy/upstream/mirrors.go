package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// mirrorPatience is how long a mirror may take to answer a question.
const mirrorPatience = 8 * time.Second

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
	return anyOf(ctx, m, func(ctx context.Context, p *Repository) (Resolved, error) { return p.Resolve(ctx, reference) })
}

// Manifest is [Repository.Manifest].
func (m MirroredRepository) Manifest(ctx context.Context, reference string) (Manifest, error) {
	return anyOf(ctx, m, func(ctx context.Context, p *Repository) (Manifest, error) { return p.Manifest(ctx, reference) })
}

// Stat is [Repository.Stat].
func (m MirroredRepository) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	return anyOf(ctx, m, func(ctx context.Context, p *Repository) (int64, error) { return p.Stat(ctx, d) })
}

// Get is [Repository.Get].
func (m MirroredRepository) Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error) {
	return anyOf(ctx, m, func(_ context.Context, p *Repository) (*http.Response, error) {
		return p.Get(ctx, path, query, header) // whose body is read later
	})
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
		if i < len(m)-1 {
			all[i] = mirror{all[i]}
		}
	}
	return chunk.First(all...)
}

// mirror is a source whose errors are no word of the registry itself.
type mirror struct{ src chunk.Source }

// mirrorError tells what it wraps, and is nothing of it.
type mirrorError struct{ err error }

func (e *mirrorError) Error() string { return "mirror: " + e.err.Error() }

// Is makes it a miss, for the next place to be asked.
func (*mirrorError) Is(target error) bool { return target == chunk.ErrNotFound }

func (m mirror) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := m.src.Get(ctx, ref)
	if err != nil {
		err = &mirrorError{err}
	}
	return p, err
}

func (m mirror) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	var stop error // what yield returned is not the mirror's
	err := chunk.GetRun(ctx, m.src, refs, func(ref chunk.Ref, p []byte) error {
		stop = yield(ref, p)
		return stop
	})
	if err != nil && stop == nil && ctx.Err() == nil {
		err = &mirrorError{err}
	}
	return err
}

// anyOf returns the first answer of several places. When there is none, the last
// place's error is first among what is returned.
func anyOf[T any](ctx context.Context, all MirroredRepository, ask func(context.Context, *Repository) (T, error)) (T, error) {
	var v T
	var before []error
	for i, p := range all {
		var err error
		within, cancel := ctx, context.CancelFunc(func() {})
		if i < len(all)-1 { // a mirror that hangs must leave time for the next
			within, cancel = context.WithTimeout(ctx, mirrorPatience)
		}
		v, err = ask(within, p)
		cancel()
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
