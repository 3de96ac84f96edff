package chunk

import "context"

// Source gets chunks.
//
// Get returns all of the chunk that ref names, or [ErrNotFound] when the source
// does not have it, a [*CorruptError] when what it has is wrong, and any other
// error when it could not say. The bytes may be shared with other callers, so
// nobody writes to them. A source that gives bytes which it did not check says
// so in its own comment; wrap it in [Verify]. Get returns soon after ctx ends.
type Source interface {
	Get(ctx context.Context, ref Ref) ([]byte, error)
}

// Store is a source that keeps what it is given.
//
// Put keeps a copy of p, or p itself: the caller no longer writes to it. A chunk
// whose digest is known has been checked by the caller. A [*CorruptError] says that
// the store knows what the chunk is, and p is something else. Any other error means that
// the chunk may not be there later, and nothing else: a lost cache write never fails
// a read.
type Store interface {
	Source
	Put(ctx context.Context, ref Ref, p []byte) error
}

// Runner is a source that gets a run of adjacent chunks with less work than one
// after the other: in one request, say.
//
// GetRun calls yield for each of refs, in order, as it arrives, and returns nil
// once all have been given. It may also yield chunks of the same blob that were
// not asked for and came along. An error from yield ends the run and is returned
// as it is. Otherwise the errors are those of Get, for the first ref that was
// not yielded.
type Runner interface {
	Source
	GetRun(ctx context.Context, refs []Ref, yield func(Ref, []byte) error) error
}

// GetRun gets adjacent chunks from src: as a run where src can, one by one
// where it can not.
func GetRun(ctx context.Context, src Source, refs []Ref, yield func(Ref, []byte) error) error {
	if r, ok := src.(Runner); ok {
		return r.GetRun(ctx, refs, yield)
	}
	for _, ref := range refs {
		p, err := src.Get(ctx, ref)
		if err != nil {
			return err
		}
		if err := yield(ref, p); err != nil {
			return err
		}
	}
	return nil
}

// GetOne is Get in terms of GetRun, for sources whose run is the real thing.
func GetOne(ctx context.Context, r Runner, ref Ref) (p []byte, err error) {
	err = r.GetRun(ctx, []Ref{ref}, func(got Ref, q []byte) error {
		if got.Offset == ref.Offset {
			p = q
		}
		return nil
	})
	return p, err
}
