package proxy

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// A blob that others keep on this machine, as a runtime does whose images came through the
// node, is read where it lies. It has matched its digest, so what holds of a stored blob that
// has holds of it: a host's readers are served from there once the host has shown that it has
// the blob too (see ownership.go). Nothing of it is stored a second time.

// Beside has blobs that others keep on this machine. It is only read.
type Beside interface {
	// Open returns a blob. The error is [chunk.ErrNotFound] unless ctx ended: then the blob goes on
	// being checked, for who asks next.
	Open(ctx context.Context, d digest.Digest) (Kept, error)
	// Stat returns the size in bytes that a blob seems to have, without reading it.
	Stat(ctx context.Context, d digest.Digest) (int64, error)
	// Links returns the links before and after a chunk of a blob that has been opened, if
	// that is remembered. They are the blob's even when nobody keeps it any more.
	Links(ref chunk.Ref) (before, after chunk.Link, ok bool)
	// Read returns what stands where a chunk of a blob should be, unchecked: for those who know
	// what they look for. The error is [chunk.ErrNotFound] if there is no such blob.
	Read(ctx context.Context, ref chunk.Ref) ([]byte, error)
}

// Kept is a blob of which all has matched its digest. [chunk.ErrNotFound] says that it is gone.
type Kept interface {
	chunk.Source
	Size() int64
	Links(ref chunk.Ref) (before, after chunk.Link)
	// Lend opens the file at off if n bytes from there may be sent as they are.
	Lend(ctx context.Context, off, n int64) (*os.File, bool)
}

// nobody keeps anything.
type nobody struct{}

func (nobody) Open(context.Context, digest.Digest) (Kept, error)      { return nil, chunk.ErrNotFound }
func (nobody) Stat(context.Context, digest.Digest) (int64, error)     { return 0, chunk.ErrNotFound }
func (nobody) Links(chunk.Ref) (before, after chunk.Link, known bool) { return "", "", false }
func (nobody) Read(context.Context, chunk.Ref) ([]byte, error)        { return nil, chunk.ErrNotFound }

// kept returns a blob that is kept beside the store, or nil if there is none that the
// repository's host has shown to have, or all of it is stored anyway.
func (p *Repository) kept(ctx context.Context, m *chunk.Map, far chunk.Source) Kept {
	r, d := p.registry, m.Blob()
	if r.Stored(d, m.Size()) && r.mayShare(p.Host, d) {
		return nil
	}
	k := r.openKept(ctx, d, m.Size())
	if k == nil || r.cfg.Catalog.Possesses(p.Host, d) {
		return k
	}
	if shown, err := p.shows(ctx, m, k, far); err != nil || !shown {
		return nil // whoever reads it finds out why
	}
	return k
}

// openKept returns a blob that is kept beside the store, or nil: also while it is being read
// for the first time, which may take long.
func (r *Registry) openKept(ctx context.Context, d digest.Digest, total int64) Kept {
	ctx, cancel := context.WithTimeout(ctx, keptWithin)
	defer cancel()
	k, err := r.cfg.Beside.Open(ctx, d)
	if err != nil || k.Size() != total {
		return nil
	}
	return k
}

// How long a blob that is kept beside the store may be read, the first time, before it is got
// elsewhere; and before a member is told to come again.
const (
	keptWithin = 2 * time.Second
	lentWithin = 20 * time.Second
)

// lentKept returns a blob that is kept beside the store and may be lent as a host's. The error is
// [chunk.ErrNotFound] if there is none, and another one if that is still being found out.
func (r *Registry) lentKept(ctx context.Context, host string, d digest.Digest, total int64) (Kept, error) {
	if !r.cfg.Catalog.Possesses(host, d) {
		return nil, chunk.ErrNotFound
	}
	ctx, cancel := context.WithTimeout(ctx, lentWithin)
	defer cancel()
	k, err := r.cfg.Beside.Open(ctx, d)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("blob %s: it is being checked: %w", d, ctx.Err())
	case err != nil || k.Size() != total:
		return nil, chunk.ErrNotFound
	}
	return k, nil
}

// StatBeside returns the size of a blob that is kept beside the store and may be lent as a
// host's, without reading it. The error is [chunk.ErrNotFound].
func (r *Registry) StatBeside(ctx context.Context, host string, d digest.Digest) (int64, error) {
	if !r.cfg.Catalog.Possesses(host, d) {
		return 0, chunk.ErrNotFound
	}
	return r.cfg.Beside.Stat(ctx, d)
}

// LinksBeside returns the links before and after a chunk of a blob that is kept beside the store,
// or was, and may be lent as a host's.
func (r *Registry) LinksBeside(host string, ref chunk.Ref) (before, after chunk.Link, ok bool) {
	if !r.cfg.Catalog.Possesses(host, ref.Blob) {
		return "", "", false
	}
	return r.cfg.Beside.Links(ref)
}

// Possessed reports whether any host that has the blob in a repository has shown that it has it.
func (r *Registry) Possessed(d digest.Digest) bool {
	for _, home := range r.cfg.Catalog.Homes(d) {
		if r.cfg.Catalog.Possesses(hostOf(home), d) {
			return true
		}
	}
	return false
}

// beside reads a blob where it is kept, and from src what is gone from there.
func beside(k Kept, src chunk.Source) chunk.Source {
	return chunk.First(chunk.Named("disk", k), fitting{src, k})
}

// showing is a source of a blob of one chunk. It has been checked when it comes, so the host that
// it is read for has shown it: nothing else says so, for nobody hashes such a blob a second time.
type showing struct {
	src chunk.Source
	p   *Repository
}

func (s showing) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	b, err := s.src.Get(ctx, ref)
	if c := s.p.registry.cfg.Catalog; err == nil && !c.Possesses(s.p.Host, ref.Blob) {
		s.p.registry.report(c.SetPossesses(s.p.Host, ref.Blob))
	}
	return b, err
}

// fitting is a source of a blob whose links are known, by which all that it gives is checked.
type fitting struct {
	src  chunk.Source
	kept Kept
}

func (l fitting) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, l, ref)
}

func (l fitting) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	asked, from := chunk.WithOrigin(ctx)
	return chunk.GetRun(asked, l.src, refs, func(ref chunk.Ref, p []byte) error {
		before, after := l.kept.Links(ref)
		if err := ref.CheckLink(from(), before, after, p); err != nil {
			return err
		}
		chunk.SetOrigin(ctx, from())
		return yield(ref, p)
	})
}

// known are the proofs of a blob that is known to be right.
type known struct{}

func (known) Proven(digest.Digest) bool   { return true }
func (known) Link(chunk.Ref, chunk.Link)  {}
func (known) Before(chunk.Ref) chunk.Link { return "" }
func (known) Prove(digest.Digest, int64)  {}
func (known) Refute(digest.Digest)        {}
