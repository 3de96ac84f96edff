package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// mirrorPatience is how long one of several places may take to answer a question, for
// the next to have time; and deputyPatience how long the last [Deputy] may, who may be behind a line that is
// down for a moment.
const (
	mirrorPatience = 8 * time.Second
	deputyPatience = 12 * time.Second
)

// Mirrors is a repository that is found in several places, in order of preference:
// what one cannot or will not give is asked of the next. The last that is a registry,
// an [upstream.Repository], is taken to be the registry itself, whose refusal is what
// callers see; before it are mirrors of it. Other places may be before or behind it,
// and lack what they like. Where the registry has no say, or none is among them, a refusal by a
// [Deputy] stands for its own.
type Mirrors []Upstream

// patience returns how long one place may take, with another behind it.
func patience(up, next Upstream) time.Duration {
	_, deputy := up.(Deputy)
	_, another := next.(Deputy)
	if deputy && !another {
		return deputyPatience
	}
	return mirrorPatience
}

// Deputy is an upstream that speaks for the registry while that cannot be asked.
type Deputy interface{ Deputy() }

// Wrapper is an upstream that adds something to another.
type Wrapper interface{ Unwrap() Upstream }

var _ Upstream = Mirrors{}

// Resolve implements [Upstream].
func (m Mirrors) Resolve(ctx context.Context, reference string) (upstream.Resolved, error) {
	return anyOf(ctx, m, func(ctx context.Context, up Upstream) (upstream.Resolved, error) { return up.Resolve(ctx, reference) })
}

// Manifest implements [Upstream].
func (m Mirrors) Manifest(ctx context.Context, reference string) (upstream.Manifest, error) {
	return anyOf(ctx, m, func(ctx context.Context, up Upstream) (upstream.Manifest, error) { return up.Manifest(ctx, reference) })
}

// Stat implements [Upstream].
func (m Mirrors) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	return anyOf(ctx, m, func(ctx context.Context, up Upstream) (int64, error) { return up.Stat(ctx, d) })
}

// Get implements [Upstream].
func (m Mirrors) Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error) {
	return anyOf(ctx, m, func(_ context.Context, up Upstream) (*http.Response, error) {
		return up.Get(ctx, path, query, header) // whose body is read later
	})
}

// Blob implements [Upstream].
func (m Mirrors) Blob() chunk.Source {
	all := make([]chunk.Source, len(m))
	for i, up := range m {
		all[i] = up.Blob()
		if i < m.registry() {
			all[i] = mirror{all[i]}
		}
	}
	return chunk.First(all...)
}

// Doubt implements doubter.
func (m Mirrors) Doubt(d digest.Digest) {
	for _, up := range m {
		if place, ok := up.(doubter); ok {
			place.Doubt(d)
		}
	}
}

// Settled implements settler.
func (m Mirrors) Settled(d digest.Digest) {
	for _, up := range m {
		if place, ok := up.(settler); ok {
			place.Settled(d)
		}
	}
}

// registry returns which of the places is the registry itself, 0 without one. No word of
// those before it is a word of the registry.
func (m Mirrors) registry() int {
	for i := len(m) - 1; i > 0; i-- {
		if isRegistry(m[i]) {
			return i
		}
	}
	return 0
}

func isRegistry(up Upstream) bool {
	for {
		if w, ok := up.(Wrapper); ok {
			up = w.Unwrap()
			continue
		}
		_, ok := up.(*upstream.Repository)
		return ok
	}
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
	return p, m.said(ctx, err)
}

func (m mirror) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	var stop error // what yield returned is not the mirror's
	err := chunk.GetRun(ctx, m.src, refs, func(ref chunk.Ref, p []byte) error {
		stop = yield(ref, p)
		return stop
	})
	if stop != nil {
		return err
	}
	return m.said(ctx, err)
}

// said returns what an error of the mirror is to who asks it. When their time is over the
// registry itself is not asked any more.
func (mirror) said(ctx context.Context, err error) error {
	switch {
	case err == nil || timeOver(ctx, err):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("%w (mirror: %v)", ctx.Err(), err)
	}
	return &mirrorError{err}
}

// timeOver reports whether an error is what becomes of a question whose time is over. To a caller
// who has left it is nothing that a place does not answer.
func timeOver(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, ctx.Err()) || errors.Is(ctx.Err(), context.DeadlineExceeded) && upstream.Unreachable(err)
}

// anyOf returns the first answer of several places. When there is none, the error is that
// of the registry itself and of what is behind it; those of mirrors are only told. A deputy's
// word takes the place of a registry's that has none.
func anyOf[T any](ctx context.Context, all Mirrors, ask func(context.Context, Upstream) (T, error)) (T, error) {
	var v T
	var before, said []error
	var word error // of the first deputy that refused
	for i, up := range all {
		within, cancel := ctx, context.CancelFunc(func() {})
		if i < len(all)-1 {
			within, cancel = context.WithTimeout(ctx, patience(up, all[i+1]))
		}
		var err error
		v, err = ask(within, up)
		cancel()
		switch {
		case err == nil || len(all) == 1:
			return v, err
		case timeOver(ctx, err):
			return v, err
		case ctx.Err() != nil && i < len(all)-1, errors.Is(ctx.Err(), context.Canceled): // who has not been asked might say something else
			return v, fmt.Errorf("%w (before: %v)", ctx.Err(), err)
		case i < all.registry():
			before = append(before, err)
		default:
			said = append(said, err)
		}
		if _, speaks := up.(Deputy); speaks && word == nil && isAnswer(err) {
			word = err
		}
	}
	err := telling(said)
	if word != nil && hasNoSay(err) {
		return v, fmt.Errorf("%w (the registry itself: %v)", word, err)
	}
	if len(before) > 0 {
		err = fmt.Errorf("%w (before: %v)", err, errors.Join(before...))
	}
	return v, err
}

// isAnswer reports whether an error is what a registry has said of what was asked.
func isAnswer(err error) bool {
	var status *upstream.StatusError
	return errors.As(err, &status) && (errors.Is(err, chunk.ErrDenied) || errors.Is(err, chunk.ErrNotFound))
}

// telling joins errors without those that only say that a place does not have it: next
// to a refusal, or to a place that cannot be reached, these are no answer.
func telling(errs []error) error {
	var more []error
	for _, err := range errs {
		if !errors.Is(err, chunk.ErrNotFound) {
			more = append(more, err)
		}
	}
	switch {
	case len(more) > 0:
		return errors.Join(more...)
	case len(errs) > 0:
		return errs[0]
	}
	return chunk.ErrNotFound
}
