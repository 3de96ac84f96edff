package chunkstore

import (
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// hold returns the blob of ref, held against eviction, or nil when the chunk is
// in already or about to be.
func (s *Disk) hold(ref chunk.Ref) (b *blob, drops int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b = s.blobs[ref.Blob]
	if b == nil {
		b = newBlob(ref.Blob, ref.Total)
		b.read, b.changed = time.Now(), true
		s.blobs[ref.Blob] = b
	}
	if b.total != ref.Total && b.have.count() == 0 && b.users == 0 {
		*b = *newBlob(ref.Blob, ref.Total) // nothing is held to a size that nothing came of
		b.changed = true
	}
	if b.total != ref.Total {
		return nil, 0, fmt.Errorf("chunk %s: put: the blob has %d bytes, not %d", ref, b.total, ref.Total)
	}
	if b.have.has(ref.Index()) || b.writing[ref.Index()] != nil {
		return nil, 0, nil
	}
	b.users++
	return b, b.drops, nil
}

// Retain keeps a blob from being evicted until release is called. It may be
// called for blobs that are not there yet.
func (s *Disk) Retain(d digest.Digest, total int64) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	if b == nil {
		b = newBlob(d, total)
		s.blobs[d] = b
	}
	b.users++
	b.read = time.Now()
	return sync.OnceFunc(func() { s.release(b) })
}

// release gives up a hold. A blob of which nothing came is forgotten, at once unless it was
// hashed, by which it may be known again.
func (s *Disk) release(b *blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letGo(b)
}

// letGo is release; s.mu is held.
func (s *Disk) letGo(b *blob) {
	b.users--
	if b.idle() && len(b.sums) == 0 && s.blobs[b.digest] == b {
		delete(s.blobs, b.digest)
	}
}

const (
	knownFor = 10 * time.Minute // that it is remembered how a blob was hashed of which nothing is kept
	maxKnown = 1 << 16          // chunks of such blobs
)

// forgetIdle forgets blobs of which nothing is kept, and that nobody has read for a while.
func (s *Disk) forgetIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	chunks := 0
	for d, b := range s.blobs {
		if !b.idle() {
			continue
		}
		if chunks += len(b.sums) * sumsPage; chunks > maxKnown || time.Since(b.read) > knownFor {
			delete(s.blobs, d)
		}
	}
}
