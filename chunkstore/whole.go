package chunkstore

import (
	"context"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// LendWhole opens the file of a blob of total bytes if it is the blob and nothing else:
// all of it is stored, has matched its digest, and has been checked by this process. No
// file is made shorter, and none is written to again but with bytes that its links want,
// so it stays what it is for as long as it is open. The caller closes it.
func (s *Disk) LendWhole(d digest.Digest, total int64) (*os.File, bool) {
	if total <= 0 || !s.isWhole(d, total) {
		return nil, false
	}
	f, ok := s.Lend(d, 0, total)
	if !ok {
		return nil, false
	}
	// A file may have been made for a size that the blob turned out not to have.
	if info, err := f.Stat(); err != nil || info.Size() != total || !s.isWhole(d, total) || !s.current(f, d) {
		f.Close()
		return nil, false
	}
	return f, true
}

func (s *Disk) isWhole(d digest.Digest, total int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	return b != nil && b.total == total && b.whole()
}

// CheckWhole reads what this process has not checked yet of a blob that has matched its
// digest. The error is [chunk.ErrNotFound] if not all of such a blob is stored.
func (s *Disk) CheckWhole(ctx context.Context, d digest.Digest, total int64) error {
	m, err := chunk.Grid(d, total)
	if err != nil {
		return err
	}
	defer s.Retain(d, total)()
	for i := range m.Len() {
		if !s.isWhole(d, total) {
			return fmt.Errorf("blob %s: %w", d, chunk.ErrNotFound)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.isChecked(d, i) {
			continue
		}
		if _, err := s.Get(ctx, m.At(i)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Disk) isChecked(d digest.Digest, i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	return b != nil && i < b.chunks() && b.checked.has(i)
}
