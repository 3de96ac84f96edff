package chunkstore

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Proven implements [chunk.Proofs].
func (s *Disk) Proven(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	return b != nil && b.proven
}

// Links returns the links before and after a chunk of a blob, as far as they are known:
// there is none before the first, and none after the last. ok is false if the blob has
// not matched its digest.
func (s *Disk) Links(ref chunk.Ref) (before, after chunk.Link, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[ref.Blob]
	if b == nil || !b.proven || b.total != ref.Total {
		return "", "", false
	}
	i := ref.Index()
	if i > 0 {
		before = b.sums.at(i - 1).link
	}
	if !ref.Last() {
		after = b.sums.at(i).link
	}
	if i > 0 && before == "" || !ref.Last() && after == "" {
		return "", "", true
	}
	return before, after, true
}

// Link implements [chunk.Proofs].
func (s *Disk) Link(ref chunk.Ref, after chunk.Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := ref.Index()
	b := s.blobs[ref.Blob]
	if b == nil || b.total != ref.Total || after == "" {
		return
	}
	old := b.sums.at(i)
	if b.proven && old.link != "" {
		return // it is the blob's, and a reader of something else may say what it likes
	}
	if old.link != after {
		b.sums.put(i, sum{digest: old.digest, link: after})
		b.dirty[i] = time.Now()
	}
}

// Before implements [chunk.Proofs].
func (s *Disk) Before(ref chunk.Ref) chunk.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[ref.Blob]
	if b == nil || b.total != ref.Total || ref.Index() == 0 {
		return ""
	}
	return b.sums.at(ref.Index() - 1).link
}

// Prove implements [chunk.Proofs].
func (s *Disk) Prove(d digest.Digest, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.blobs[d]; b != nil && b.total == total && !b.proven {
		b.proven, b.changed = true, true
		if b.whole() {
			s.cfg.Watch(d, Completed)
		}
	}
}

// Refute implements [chunk.Proofs]: every chunk of the blob is dropped, for what
// vouched for them was only that they came from the upstream. If the disk has
// damaged some of them since, only those are.
func (s *Disk) Refute(d digest.Digest) {
	s.awaitWrites(func(b *blob) bool { return b.digest == d })
	if s.dropDamaged(d) || s.Proven(d) { // of what has matched, no reader's word to the contrary counts
		return
	}
	// In this order: what members still send of it is refused before the rest is dropped.
	s.cfg.Watch(d, Refuted)
	s.Drop(d)
}

// Drop forgets all that is stored of a blob that is not known to be right.
func (s *Disk) Drop(d digest.Digest) {
	s.committing.Lock()
	defer s.committing.Unlock()
	s.mu.Lock()
	b := s.blobs[d]
	// A write that is under way would go on in the file that is removed, and then count as
	// one in the next.
	for b != nil && len(b.writing) > 0 {
		s.mu.Unlock()
		s.awaitWrites(func(b *blob) bool { return b.digest == d })
		s.mu.Lock()
		b = s.blobs[d]
	}
	if b == nil || b.proven || b.whole() {
		s.mu.Unlock()
		return
	}
	s.uncountAll(b)
	b.drops++
	b.have, b.checked = newBitmap(b.chunks()), newBitmap(b.chunks())
	b.sums, b.dirty = make(sums), make(map[int]time.Time)
	err := os.Remove(s.path(d))
	s.mu.Unlock()
	if err != nil && !os.IsNotExist(err) {
		s.cfg.Report(fmt.Errorf("blob %s: remove wrong bytes: %w", d, err))
	}
	if err := s.update(func(tx *bbolt.Tx) error { return deleteBlob(tx, d) }); err != nil {
		s.cfg.Report(fmt.Errorf("blob %s: forget wrong bytes: %w", d, err))
	}
}

// dropDamaged drops the chunks of a blob that are not what was written, and
// reports whether there were any.
func (s *Disk) dropDamaged(d digest.Digest) bool {
	damaged := false
	for i := 0; ; i++ {
		ref, more := s.recheck(d, i)
		if !more {
			return damaged
		}
		if ref.Blob == "" {
			continue // not stored
		}
		if _, err := s.Get(context.Background(), ref); chunk.IsCorrupt(err) {
			s.cfg.Report(err)
			damaged = true
		}
	}
}

// proveLoop hashes blobs that have become complete without anyone having read
// them in order, until ctx ends.
func (s *Disk) proveLoop(ctx context.Context) {
	tick := time.NewTicker(s.cfg.SyncEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, m := range s.unproven() {
			s.proveFromDisk(ctx, m)
		}
	}
}

// unproven returns the blobs that are complete and at rest, and not proven.
func (s *Disk) unproven() (maps []*chunk.Map) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.blobs {
		if b.proven || b.users > 0 || b.chunks() == 1 || time.Since(b.read) < 2*s.cfg.SyncEvery || !b.complete() {
			continue
		}
		if m, err := chunk.Grid(b.digest, b.total); err == nil {
			maps = append(maps, m)
		}
	}
	return maps
}

// proveFromDisk reads a blob in order. Reading it as a [chunk.Blob] that must be
// complete does the rest.
func (s *Disk) proveFromDisk(ctx context.Context, m *chunk.Map) {
	defer s.Retain(m.Blob(), m.Size())()
	err := chunk.NewBlob(m, chunk.Named(diskName, s), chunk.BlobConfig{Proofs: s}).Prove(ctx)
	if err != nil && ctx.Err() == nil {
		s.cfg.Report(err)
	}
}
