package chunkstore

import (
	"context"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Stack is the near side of a node: chunks in memory before chunks on disk. It
// is a [chunk.Store] and the [chunk.Proofs] of its blobs. Without a disk it goes
// on with memory alone, and no blob is ever proven.
type Stack struct {
	Memory *Memory
	Disk   *Disk // nil when there is none

	store chunk.Store
}

// NewStack returns memory before disk, which may be nil.
func NewStack(memory *Memory, disk *Disk) *Stack {
	s := &Stack{Memory: memory, Disk: disk, store: chunk.NamedStore("memory", memory)}
	if disk != nil {
		s.store = chunk.Tier(s.store, chunk.NamedStore(diskName, disk))
	}
	return s
}

// Get implements [chunk.Source].
func (s *Stack) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) { return s.store.Get(ctx, ref) }

// Put implements [chunk.Store].
func (s *Stack) Put(ctx context.Context, ref chunk.Ref, p []byte) error {
	return s.store.Put(ctx, ref, p)
}

// Pass keeps a chunk in memory alone, for as long as others take no more room there. The error is
// a [*chunk.CorruptError] if it is known to be wrong.
func (s *Stack) Pass(ctx context.Context, ref chunk.Ref, p []byte) error {
	if s.Disk != nil {
		if err := s.Disk.fits(ref, p); err != nil {
			return err
		}
	}
	return s.Memory.Put(ctx, ref, p)
}

// Stat is [Disk.Stat].
func (s *Stack) Stat(d digest.Digest) (Info, error) {
	if s.Disk == nil {
		return Info{}, chunk.ErrNotFound
	}
	return s.Disk.Stat(d)
}

// Sync is [Disk.Sync].
func (s *Stack) Sync() error {
	if s.Disk == nil {
		return nil
	}
	return s.Disk.Sync()
}

// Has is [Disk.Has].
func (s *Stack) Has(ref chunk.Ref) bool { return s.Disk != nil && s.Disk.Has(ref) }

// Find is [Disk.Find].
func (s *Stack) Find(ctx context.Context, d digest.Digest) ([]byte, chunk.Ref, error) {
	if s.Disk == nil {
		return nil, chunk.Ref{}, chunk.ErrNotFound
	}
	return s.Disk.Find(ctx, d)
}

// Place is [Disk.Place].
func (s *Stack) Place(d digest.Digest) (chunk.Ref, bool) {
	if s.Disk == nil {
		return chunk.Ref{}, false
	}
	return s.Disk.Place(d)
}

// Retain is [Disk.Retain].
func (s *Stack) Retain(d digest.Digest, total int64) (release func()) {
	if s.Disk == nil {
		return func() {}
	}
	return s.Disk.Retain(d, total)
}

// Lend is [Disk.Lend].
func (s *Stack) Lend(d digest.Digest, off, n int64) (*os.File, bool) {
	if s.Disk == nil {
		return nil, false
	}
	return s.Disk.Lend(d, off, n)
}

// Proven implements [chunk.Proofs].
func (s *Stack) Proven(d digest.Digest) bool { return s.Disk != nil && s.Disk.Proven(d) }

// Link implements [chunk.Proofs].
func (s *Stack) Link(ref chunk.Ref, after chunk.Link) {
	if s.Disk != nil {
		s.Disk.Link(ref, after)
	}
}

// Before implements [chunk.Proofs].
func (s *Stack) Before(ref chunk.Ref) chunk.Link {
	if s.Disk == nil {
		return ""
	}
	return s.Disk.Before(ref)
}

// Prove implements [chunk.Proofs].
func (s *Stack) Prove(d digest.Digest, total int64) {
	if s.Disk != nil {
		s.Disk.Prove(d, total)
	}
}

// Drop is [Disk.Drop], for both stores.
func (s *Stack) Drop(d digest.Digest) {
	if s.Proven(d) {
		return
	}
	s.Memory.Drop(func(ref chunk.Ref) bool { return ref.Blob == d })
	if s.Disk != nil {
		s.Disk.Drop(d)
	}
}

// Refute implements [chunk.Proofs].
func (s *Stack) Refute(d digest.Digest) {
	if s.Disk != nil {
		s.Disk.Refute(d)
	}
	s.Memory.Drop(func(ref chunk.Ref) bool { return ref.Blob == d }) // after the disk, which has members' chunks refused first
}
