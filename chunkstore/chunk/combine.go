package chunk

import (
	"context"
	"errors"
	"fmt"
)

// Verify returns src with every answer checked: a chunk of the wrong length, or
// of the wrong digest where one is known, becomes a [*CorruptError] that blames
// name. Past Verify bytes are as right as can be known of them alone.
func Verify(name string, src Source) Source { return verified{src, name} }

type verified struct {
	src  Source
	name string
}

func (v verified) Get(ctx context.Context, ref Ref) ([]byte, error) { return GetOne(ctx, v, ref) }

func (v verified) GetRun(ctx context.Context, refs []Ref, yield func(Ref, []byte) error) error {
	return GetRun(ctx, v.src, refs, func(ref Ref, p []byte) error {
		if err := ref.Check(v.name, p); err != nil {
			return err
		}
		return yield(ref, p)
	})
}

// First returns a source that asks srcs in order until one has the chunk. An
// error that is not a miss does not hide: when no source has the chunk, it is
// joined to the result. No miss is concluded from a source that was not asked
// because ctx was over.
func First(srcs ...Source) Source { return first(srcs) }

type first []Source

func (f first) Get(ctx context.Context, ref Ref) ([]byte, error) { return GetOne(ctx, f, ref) }

func (f first) GetRun(ctx context.Context, refs []Ref, yield func(Ref, []byte) error) error {
	var errs []error
	for _, src := range f {
		var stop error
		err := GetRun(ctx, src, refs, func(ref Ref, p []byte) error {
			if len(refs) > 0 && ref.Offset == refs[0].Offset {
				refs = refs[1:] // what was given is not asked of the next source
			}
			stop = yield(ref, p)
			return stop
		})
		if err == nil || stop != nil {
			return err
		}
		if cause := ctx.Err(); cause != nil {
			return over(cause, err)
		}
		errs = append(errs, err)
	}
	return miss(errs)
}

// over returns what err is to a caller whose time is over, for cause.
func over(cause, err error) error {
	if errors.Is(err, ErrNotFound) && !errors.Is(err, cause) {
		return fmt.Errorf("%w (after: %v)", cause, err)
	}
	return err
}

// miss turns the errors of all sources into one: plain misses are one miss.
func miss(errs []error) error {
	joined := errors.Join(errs...)
	if joined == nil || notFoundOnly(joined) {
		return ErrNotFound
	}
	return joined
}

// Tier returns a store that reads from fast before slow and keeps in both. What
// slow gives is kept in fast. Only slow decides whether a Put succeeded; what it finds
// to be wrong goes to neither.
func Tier(fast, slow Store) Store { return tier{fast, slow} }

type tier struct{ fast, slow Store }

func (t tier) Get(ctx context.Context, ref Ref) ([]byte, error) {
	p, fastErr := t.fast.Get(ctx, ref)
	if fastErr == nil {
		return p, nil
	}
	p, slowErr := t.slow.Get(ctx, ref)
	if slowErr == nil {
		_ = t.fast.Put(ctx, ref, p)
		return p, nil
	}
	return nil, miss([]error{fastErr, slowErr})
}

func (t tier) Put(ctx context.Context, ref Ref, p []byte) error {
	err := t.slow.Put(ctx, ref, p)
	if !IsCorrupt(err) {
		_ = t.fast.Put(ctx, ref, p)
	}
	return err
}

// Cache returns a source that answers from near, and on a miss from far, keeping
// in near what far gives. Concurrent misses of one chunk are one fetch, through
// flight, which all caches over the same near store share.
//
// A near store that fails or holds wrong bytes is worked around: the fault goes
// to report, and the chunk is fetched from far and put again. report may be nil.
func Cache(near Store, far Source, flight *Flight, report func(error)) Source {
	if report == nil {
		report = func(error) {}
	}
	return &cache{near, far, flight, report}
}

type cache struct {
	near   Store
	far    Source
	flight *Flight
	report func(error)
}

func (c *cache) Get(ctx context.Context, ref Ref) ([]byte, error) { return GetOne(ctx, c, ref) }

// GetRun alternates between what near has and the gaps between, which become
// runs of far.
func (c *cache) GetRun(ctx context.Context, refs []Ref, yield func(Ref, []byte) error) error {
	for len(refs) > 0 {
		hit, from := c.lookup(ctx, refs[0])
		if hit != nil {
			setOrigin(ctx, from)
			if err := yield(refs[0], hit); err != nil {
				return err
			}
			refs = refs[1:]
			continue
		}
		gap := 1
		for gap < len(refs) && hit == nil {
			if hit, from = c.lookup(ctx, refs[gap]); hit == nil {
				gap++
			}
		}
		if err := c.flight.Run(ctx, refs[:gap], c.fetch, yield); err != nil {
			return err
		}
		refs = refs[gap:]
		if hit != nil { // found while the gap was measured, so not read again
			setOrigin(ctx, from)
			if err := yield(refs[0], hit); err != nil {
				return err
			}
			refs = refs[1:]
		}
	}
	return nil
}

func (c *cache) lookup(ctx context.Context, ref Ref) ([]byte, string) {
	ctx, o := withOrigin(ctx)
	p, err := c.near.Get(ctx, ref)
	if err == nil {
		if p == nil {
			p = []byte{} // the one chunk of an empty blob
		}
		return p, o.name
	}
	if !notFoundOnly(err) && ctx.Err() == nil {
		c.report(err)
	}
	return nil, ""
}

// fetch gets a run from far and keeps it. A chunk is in near before anyone who
// waits for it is told, so that what a reader has seen can be proven from near. What near
// knows to be wrong, nobody is told.
func (c *cache) fetch(ctx context.Context, refs []Ref, yield func(Ref, []byte) error) error {
	return GetRun(ctx, c.far, refs, func(ref Ref, p []byte) error {
		err := c.near.Put(ctx, ref, p)
		var wrong *CorruptError
		if errors.As(err, &wrong) {
			return &CorruptError{Source: OriginOf(ctx), Ref: ref, Reason: wrong.Reason}
		}
		if err != nil && ctx.Err() == nil {
			c.report(err)
		}
		return yield(ref, p)
	})
}
