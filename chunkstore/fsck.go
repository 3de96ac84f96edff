package chunkstore

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// FsckReport sums up a check of the store.
type FsckReport struct {
	Blobs  int   `json:"blobs"`  // looked at
	Chunks int   `json:"chunks"` // read and checked
	Bytes  int64 `json:"bytes"`  // of those chunks
	Wrong  int   `json:"wrong"`  // chunks that were wrong and have been dropped
	Failed int   `json:"failed"` // chunks that could not be read, and are still there
}

// Fsck reads and checks every chunk, this process's own writes included. Wrong
// chunks are dropped. found is told of each that is wrong or cannot be read; pace
// is called with the size of each chunk after it was read, and may wait. Either
// may be nil. The error is that of ctx.
func (s *Disk) Fsck(ctx context.Context, pace func(n int64), found func(error)) (FsckReport, error) {
	var report FsckReport
	if err := s.Sync(); err != nil && found != nil { // what nothing vouches for cannot be checked
		found(err)
	}
	for _, d := range s.digests() {
		report.Blobs++
		for i := 0; ; i++ {
			if err := ctx.Err(); err != nil {
				return report, err
			}
			ref, more := s.recheck(d, i)
			if !more {
				break
			}
			if ref.Blob == "" {
				continue // not stored
			}
			_, err := s.Get(ctx, ref)
			switch {
			case err == nil:
			case errors.Is(err, chunk.ErrNotFound) || ctx.Err() != nil:
				continue // evicted in the meantime
			case chunk.IsCorrupt(err):
				report.Wrong++
			default:
				report.Failed++
			}
			if err != nil && found != nil {
				found(err)
			}
			report.Chunks++
			report.Bytes += ref.Size
			if pace != nil {
				pace(ref.Size)
			}
		}
	}
	return report, ctx.Err()
}

// recheck makes the next read of chunk i of d check it, and returns its ref: an
// empty one if the chunk is not stored. more is false past the blob's end.
func (s *Disk) recheck(d digest.Digest, i int) (ref chunk.Ref, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	if b == nil || i >= b.chunks() {
		return chunk.Ref{}, false
	}
	if !b.have.has(i) {
		return chunk.Ref{}, true
	}
	if _, vouched := b.voucher(i); vouched {
		b.checked.clear(i)
	}
	return b.ref(i), true
}

func (s *Disk) digests() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]digest.Digest, 0, len(s.blobs))
	for d := range s.blobs {
		all = append(all, d)
	}
	return all
}
