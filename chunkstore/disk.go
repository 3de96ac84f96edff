package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const diskName = "disk"

// Config holds the settings of a [Disk]. Its zero is a store without a limit.
type Config struct {
	// Budget bounds the bytes of chunks that are kept. 0 has no bound.
	Budget int64
	// Below is a store that shares the budget, and gives up all that it can before
	// anything of this one is evicted. nil is for none.
	Below *Disk
	// SyncEvery is how often what was written is synced and recorded, and so how
	// much of the latest writes a crash may lose. 0 is one second.
	SyncEvery time.Duration
	// VerifyAlways checks a chunk each time it is read, not only the first time
	// that this process reads it, and lends no files.
	VerifyAlways bool
	// Held returns the blobs that are kept as long as the one whose bytes are p, such as the
	// configs of a manifest. It is asked of JSON objects, which may be anything, and must
	// not call the store. nil is for none.
	Held func(p []byte) []digest.Digest
	// Last reports whether a blob is evicted only when all others are gone. It must not call
	// the store. nil is for none.
	Last func(d digest.Digest) bool
	// Watch is told what becomes of whole blobs. It must return at once and not call
	// the store. nil ignores it.
	Watch func(d digest.Digest, e Event)
	// Report is told of faults that no caller is told of, or that a caller works
	// around. It must not call the store. nil ignores them.
	Report func(error)
}

// Disk is a [chunk.Store] in a directory, and the [chunk.Proofs] of its blobs.
// Close it after use. All methods may be called concurrently.
type Disk struct {
	dir string
	cfg Config
	db  *bbolt.DB

	direct     directWriter
	small      smallWrites
	noClones   atomic.Bool // the file system does not do it
	committing sync.Mutex  // held by commits, evictions and drops; taken before mu
	stop       context.CancelFunc
	done       sync.WaitGroup

	mu     sync.Mutex
	blobs  map[digest.Digest]*blob
	used   int64                // sum of blob.bytes, but for
	shared int64                // bytes of chunks that share those of others
	fresh  map[string]chunk.Ref // by raw SHA-256: chunks that the digests bucket does not list yet
}

// Event is what may become of a blob in a store.
type Event int

// Events.
const (
	Completed Event = iota // all of it is stored, and matches its digest
	Refuted                // it did not match its digest
	Lost                   // it was complete, and is not any more
)

// Open opens the store in dir, which is made if it is not there. The caller
// holds the directory's lock (see [Lock]). An index that is damaged is set aside
// as index.db.damaged, and the blobs whose files still match their digests are
// taken over into a new one.
func Open(dir string, cfg Config) (*Disk, error) {
	if cfg.SyncEvery <= 0 {
		cfg.SyncEvery = time.Second
	}
	if cfg.Report == nil {
		cfg.Report = func(error) {}
	}
	if cfg.Watch == nil {
		cfg.Watch = func(digest.Digest, Event) {}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	s := &Disk{dir: dir, cfg: cfg, fresh: make(map[string]chunk.Ref)}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	for _, b := range s.blobs {
		s.used += b.bytes()
	}
	s.findShares()
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.done.Go(func() { s.commitLoop(ctx) })
	s.done.Go(func() { s.proveLoop(ctx) })
	return s, nil
}

func (s *Disk) open() (err error) {
	if err := os.MkdirAll(filepath.Join(s.dir, "blobs"), 0o700); err != nil {
		return err
	}
	if err := checkVersion(s.dir); err != nil {
		return err
	}
	s.noClones.Store(!clones(s.dir))
	index := filepath.Join(s.dir, "index.db")
	s.db, s.blobs, err = openIndex(index)
	damaged := errors.Is(err, errIndex)
	if damaged {
		s.cfg.Report(fmt.Errorf("store %s: %w; starting a new one", s.dir, err))
		if err := os.Rename(index, index+".damaged"); err != nil {
			return err
		}
		s.db, s.blobs, err = openIndex(index)
	}
	if err != nil {
		return err
	}
	return s.settleFiles(damaged)
}

// Close records what was written and closes the store.
func (s *Disk) Close() error {
	s.stop()
	s.done.Wait()
	err := s.commit(true)
	if cerr := s.db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("store %s: close: %w", s.dir, err)
	}
	return nil
}
