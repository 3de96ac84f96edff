package chunkstore

import (
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Info is what a store knows of a blob.
type Info struct {
	Size   int64 // of the blob
	Stored int64 // bytes of it that are in the store
	Proven bool  // the blob has matched its digest
}

// Stat returns what is known of a blob, or [chunk.ErrNotFound].
func (s *Disk) Stat(d digest.Digest) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	if b == nil || b.have.count() == 0 {
		return Info{}, chunk.ErrNotFound
	}
	return Info{Size: b.total, Stored: b.bytes(), Proven: b.proven}, nil
}

// Has reports whether a chunk is stored.
func (s *Disk) Has(ref chunk.Ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[ref.Blob]
	return b != nil && b.total == ref.Total && b.have.has(ref.Index())
}

// Have returns a bit for each chunk of a blob that is stored, the lowest first.
func (s *Disk) Have(d digest.Digest) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	if b == nil {
		return nil
	}
	bits := make([]byte, (b.chunks()+7)/8)
	for i := range b.chunks() {
		if b.have.has(i) {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return bits
}

// Completed returns the blobs of which all is stored and known to match its digest.
func (s *Disk) Completed() (all []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, b := range s.blobs {
		if b.whole() {
			all = append(all, d)
		}
	}
	return all
}

// Usage is how much the store holds.
type Usage struct {
	Bytes  int64 `json:"bytes"`  // of chunks, on disk
	Shared int64 `json:"shared"` // bytes of chunks beyond that: which the disk has once for several
	Budget int64 `json:"budget"` // 0 without a bound
	Blobs  int   `json:"blobs"`  // of which at least one chunk is stored
}

// Usage returns how much the store holds.
func (s *Disk) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Bytes: s.used, Shared: s.shared, Budget: s.cfg.Budget}
	for _, b := range s.blobs {
		if b.have.count() > 0 {
			u.Blobs++
		}
	}
	return u
}
