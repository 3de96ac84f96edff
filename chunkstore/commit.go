package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// commitLoop records what was written, now and then, until ctx ends.
func (s *Disk) commitLoop(ctx context.Context) {
	tick := time.NewTicker(s.cfg.SyncEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.commit(false); err != nil {
			s.cfg.Report(fmt.Errorf("store %s: record what was written: %w", s.dir, err))
		}
		s.evictAboveWatermark()
		s.forgetIdle()
	}
}

// Sync records everything that was written so far. What it speaks of survives a
// crash that follows its return.
func (s *Disk) Sync() error {
	if err := s.commit(true); err != nil {
		return fmt.Errorf("store %s: sync: %w", s.dir, err)
	}
	return nil
}

// batch is what one commit records of one blob: a copy, so that files are synced
// and the index written without holding the lock.
type batch struct {
	b      *blob
	proven bool
	read   time.Time
	made   bool
	chunks []batchChunk
}

type batchChunk struct {
	ref   chunk.Ref
	since time.Time // of the dirty mark that this commit takes off
	have  bool
	sum   sum
	bare  bool // nothing vouches for it yet
}

// commit syncs files and then records their chunks. A chunk for which nothing
// vouches yet is left for its reader's link for a while, and digested here when
// none has come, or at once if all is set.
func (s *Disk) commit(all bool) error {
	if all {
		s.awaitWrites(func(*blob) bool { return true })
	}
	s.committing.Lock()
	defer s.committing.Unlock()
	var errs []error
	batches := s.collect(all)
	kept := batches[:0]
	for _, t := range batches {
		if err := s.syncFile(t); err != nil {
			s.forget(t) // after a failed sync nobody knows what the file holds
			errs = append(errs, err)
			continue
		}
		kept = append(kept, t)
	}
	if len(kept) > 0 {
		if err := s.record(kept); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

// collect copies what is to be recorded.
func (s *Disk) collect(all bool) []*batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	patience := time.Now().Add(-2 * s.cfg.SyncEvery)
	var batches []*batch
	for _, b := range s.blobs {
		if !b.recorded && b.have.count() == 0 {
			continue // nothing of it is kept
		}
		readLater := b.recorded && b.read.Sub(b.readRecorded) > time.Minute
		if len(b.dirty) == 0 && !b.changed && !readLater {
			continue
		}
		t := &batch{b: b, proven: b.proven, read: b.read, made: b.made}
		for i, since := range b.dirty {
			v, vouched := b.voucher(i)
			c := batchChunk{ref: v.ref, since: since, have: b.have.has(i), sum: b.sums.at(i)}
			c.bare = c.have && !vouched
			if c.bare && !all && since.After(patience) {
				continue
			}
			t.chunks = append(t.chunks, c)
		}
		if len(t.chunks) > 0 || b.changed && b.have.count() > 0 || readLater {
			batches = append(batches, t)
		}
	}
	return batches
}

// syncFile makes the bytes of a batch durable, and digests the chunks that lack
// a digest.
func (s *Disk) syncFile(t *batch) error {
	path := s.path(t.b.digest)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		for _, c := range t.chunks {
			if c.have {
				return fmt.Errorf("blob %s: its file is gone", t.b.digest)
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range t.chunks {
		if c := &t.chunks[i]; c.bare {
			p, err := s.read(c.ref)
			if err != nil {
				return err
			}
			c.sum.digest = rawDigest(digest.FromBytes(p))
		}
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("blob %s: sync: %w", t.b.digest, err)
	}
	if !t.made {
		return nil
	}
	// The file's name must be as durable as its bytes: the two directories
	// above it may be as new as the file.
	for dir := filepath.Dir(path); dir != filepath.Dir(s.dir); dir = filepath.Dir(dir) {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// record writes batches to the index and takes off their dirty marks.
func (s *Disk) record(batches []*batch) error {
	err := s.update(func(tx *bbolt.Tx) error {
		for _, t := range batches {
			if err := t.put(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range batches {
		t.b.recorded = true
		t.b.readRecorded = t.read
		t.b.changed = t.b.proven != t.proven
		t.b.made = t.b.made && !t.made
		for _, c := range t.chunks {
			s.recorded(t.b, c)
		}
	}
	return nil
}

// recorded takes off the dirty mark of c, unless the chunk was marked again
// since it was copied. s.mu is held.
func (s *Disk) recorded(b *blob, c batchChunk) {
	i := c.ref.Index()
	delete(s.fresh, c.sum.digest)
	if now := b.sums.at(i); c.bare && now.digest == "" && b.have.has(i) {
		b.sums.put(i, sum{digest: c.sum.digest, link: now.link})
	}
	if since, dirty := b.dirty[i]; dirty && since.Equal(c.since) {
		delete(b.dirty, i)
	}
}

func (t *batch) put(tx *bbolt.Tx) error {
	if err := tx.Bucket(blobsBucket).Put([]byte(t.b.digest), encodeBlob(t.b.total, t.proven, t.read)); err != nil {
		return err
	}
	for _, c := range t.chunks {
		key := chunkKey(t.b.digest, c.ref.Index())
		if !c.have && c.sum.link == "" {
			if err := tx.Bucket(chunksBucket).Delete(key); err != nil {
				return err
			}
			continue
		}
		if err := tx.Bucket(chunksBucket).Put(key, encodeChunk(c.have, c.sum)); err != nil {
			return err
		}
		if c.have && c.sum.digest != "" {
			if err := tx.Bucket(digestsBucket).Put([]byte(c.sum.digest), encodePlace(t.b.digest, c.ref.Index())); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget drops the chunks of a batch that could not be made durable.
func (s *Disk) forget(t *batch) {
	for _, c := range t.chunks {
		s.drop(t.b, c.ref.Index())
	}
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
