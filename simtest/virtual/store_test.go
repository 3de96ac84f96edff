package virtual

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// store is a node's disk: it remembers which chunks of an image it has.
type store struct {
	img *image

	mu     sync.Mutex
	have   map[chunk.Key]bool
	proven map[digest.Digest]bool
	told   func(d digest.Digest, proven bool) // of the life that the node has now
}

var _ chunk.Store = (*store)(nil)
var _ chunk.Proofs = (*store)(nil)

func newStore(img *image) *store {
	return &store{img: img, have: make(map[chunk.Key]bool), proven: make(map[digest.Digest]bool)}
}

// Get implements [chunk.Source].
func (s *store) Get(_ context.Context, ref chunk.Ref) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.have[ref.Key()] {
		return nil, chunk.ErrNotFound
	}
	return s.img.bytes(ref), nil
}

// has reports whether a chunk is stored.
func (s *store) has(ref chunk.Ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have[ref.Key()]
}

// Put implements [chunk.Store].
func (s *store) Put(_ context.Context, ref chunk.Ref, p []byte) error {
	if _, err := s.img.intern(ref, p); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have[ref.Key()] = true
	return nil
}

// Proven implements [chunk.Proofs].
func (s *store) Proven(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proven[d]
}

// Link implements [chunk.Proofs].
func (s *store) Link(chunk.Ref, chunk.Link) {}

// Before implements [chunk.Proofs].
func (s *store) Before(chunk.Ref) chunk.Link { return "" }

// Prove implements [chunk.Proofs].
func (s *store) Prove(d digest.Digest, _ int64) {
	s.mu.Lock()
	s.proven[d] = true
	told := s.told
	s.mu.Unlock()
	told(d, true)
}

// Refute implements [chunk.Proofs].
func (s *store) Refute(d digest.Digest) {
	s.mu.Lock()
	told := s.told
	s.mu.Unlock()
	told(d, false)
}

func (s *store) tell(told func(digest.Digest, bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = told
}

// all returns the blobs that are proven.
func (s *store) all() (ds []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.proven {
		ds = append(ds, d)
	}
	return ds
}
