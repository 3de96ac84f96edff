package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// whole reports whether all of a blob is stored and known to match its digest.
func (b *blob) whole() bool { return b.complete() && (b.proven || b.chunks() == 1) }

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

// ErrFull says that the budget leaves no room for a chunk.
var ErrFull = errors.New("store is full: everything in it is being read or written")

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

// Get implements [chunk.Source]. A chunk that the store does not have under
// ref's blob, but has under another with the digest that ref gives, is copied.
func (s *Disk) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	i := ref.Index()
	s.mu.Lock()
	b := s.blobs[ref.Blob]
	if b != nil && b.total == ref.Total && b.writing[i] != nil {
		defer s.mu.Unlock()
		return b.writing[i].bytes, nil
	}
	if b == nil || b.total != ref.Total || i >= b.chunks() || !b.have.has(i) {
		s.mu.Unlock()
		return s.byDigest(ctx, ref)
	}
	v, vouched := b.voucher(i)
	check := vouched && (s.cfg.VerifyAlways || !b.checked.has(i))
	b.read = time.Now()
	b.users++
	s.mu.Unlock()
	defer s.release(b)

	p, err := s.read(v.ref)
	if err == nil && check {
		err = v.check(p)
	}
	switch {
	case err == nil:
		s.mu.Lock()
		b.checked.set(i)
		s.mu.Unlock()
		return p, nil
	case chunk.IsCorrupt(err):
		s.drop(b, i)
	}
	return nil, err
}

// ReadAt reads the len(p) bytes at off of a chunk into p. Of a chunk that this process
// has checked, of a blob that is known to be right, nothing else is read. The errors are
// those of Get.
func (s *Disk) ReadAt(ctx context.Context, ref chunk.Ref, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > ref.Size {
		return fmt.Errorf("chunk %s: %d bytes at %d of it", ref, len(p), off)
	}
	if b := s.holdChecked(ref); b != nil {
		defer s.release(b)
		if s.readAt(ref, p, off, 0) == nil {
			return nil
		}
	}
	all, err := s.Get(ctx, ref)
	if err == nil {
		copy(p, all[off:])
	}
	return err
}

// holdChecked returns the blob of a chunk that can be read as it is, held against
// eviction, or nil.
func (s *Disk) holdChecked(ref chunk.Ref) *blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, i := s.blobs[ref.Blob], ref.Index()
	if b == nil || b.total != ref.Total || i >= b.chunks() || !b.checked.has(i) || !b.proven && !b.whole() || s.cfg.VerifyAlways {
		return nil
	}
	b.read = time.Now()
	b.users++
	return b
}

func (s *Disk) readAt(ref chunk.Ref, p []byte, off int64, flag int) error {
	f, err := os.OpenFile(s.path(ref.Blob), os.O_RDONLY|flag, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.ReadAt(p, ref.Offset+off); n < len(p) {
		return err
	}
	return nil
}

// read reads a chunk from its file, unchecked. A file that is gone or short is
// a [*chunk.CorruptError].
func (s *Disk) read(ref chunk.Ref) ([]byte, error) {
	f, err := os.Open(s.path(ref.Blob))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &chunk.CorruptError{Source: diskName, Ref: ref, Reason: "its file is gone"}
	}
	if err != nil {
		return nil, fmt.Errorf("chunk %s: %w", ref, err)
	}
	defer f.Close()
	p := make([]byte, ref.Size)
	if n, err := f.ReadAt(p, ref.Offset); err == io.EOF && n < len(p) {
		return nil, &chunk.CorruptError{Source: diskName, Ref: ref, Reason: fmt.Sprintf("its file ends after %d bytes", n)}
	} else if err != nil && err != io.EOF {
		return nil, fmt.Errorf("chunk %s: %w", ref, err)
	}
	return p, nil
}

// byDigest finds a chunk by its own digest, in whatever blob holds it, and
// copies it to where ref says.
func (s *Disk) byDigest(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	want := ref.Want()
	if want == "" || want.Algorithm() != digest.SHA256 || want.Validate() != nil {
		return nil, chunk.ErrNotFound
	}
	other, ok := s.findDigest(want)
	if !ok || other.Key() == ref.Key() || other.Size != ref.Size {
		return nil, chunk.ErrNotFound
	}
	p, err := s.Get(ctx, other)
	if err != nil {
		return nil, err
	}
	if err := ref.Check(diskName, p); err != nil {
		return nil, chunk.ErrNotFound // the other blob has changed since it was indexed
	}
	if err := s.Put(ctx, ref, p); err != nil {
		s.cfg.Report(err)
	}
	return p, nil
}

// Put implements [chunk.Store]. A chunk that is there already is left as it is.
// A chunk that another blob has, by the digest that ref gives, takes no more bytes on disk where
// the file system can share them. When the budget is used up, Put makes room first. The write may still be under
// way when Put returns; then Get answers from p, and a fault is reported.
func (s *Disk) Put(_ context.Context, ref chunk.Ref, p []byte) error {
	if err := ref.Validate(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if int64(len(p)) != ref.Size {
		return fmt.Errorf("store: chunk %s: %d bytes", ref, len(p))
	}
	b, err := s.hold(ref)
	if b == nil || err != nil {
		return err
	}
	defer s.release(b)
	if err := s.fits(ref, p); err != nil {
		return err
	}
	if s.clone(b, ref, p) {
		return nil
	}
	if err := s.makeRoom(ref.Size); err != nil {
		return fmt.Errorf("chunk %s: put: %w", ref, err)
	}
	return s.write(b, ref, p)
}

// hold returns the blob of ref, held against eviction, or nil when the chunk is
// in already or about to be.
func (s *Disk) hold(ref chunk.Ref) (*blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[ref.Blob]
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
		return nil, fmt.Errorf("chunk %s: put: the blob has %d bytes, not %d", ref, b.total, ref.Total)
	}
	if b.have.has(ref.Index()) || b.writing[ref.Index()] != nil {
		return nil, nil
	}
	b.users++
	return b, nil
}

// wrote notes that a chunk's bytes are in its file. s.mu is held.
func (s *Disk) wrote(b *blob, ref chunk.Ref, made bool) {
	i := ref.Index()
	b.made = b.made || made
	if b.have.has(i) {
		return // written by two at once, with the same bytes as far as is known
	}
	b.have.set(i)
	b.checked.set(i)
	b.dirty[i] = time.Now()
	if want := ref.Want(); want != "" && want.Algorithm() == digest.SHA256 {
		raw := rawDigest(want)
		b.sums.put(i, sum{digest: raw, link: b.sums.at(i).link})
		s.fresh[raw] = b.ref(i)
	}
	if b.whole() {
		s.cfg.Watch(b.digest, Completed)
	}
}

// release gives up a hold. A blob of which nothing came is forgotten, at once unless it was
// hashed, by which it may be known again.
func (s *Disk) release(b *blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
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

// drop forgets a chunk whose bytes are wrong. Its record follows with the next
// commit; until then a crash brings it back, to be checked and dropped again.
func (s *Disk) drop(b *blob, i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !b.have.has(i) {
		return
	}
	if b.whole() {
		s.cfg.Watch(b.digest, Lost)
	}
	s.doubt(sharer{b, i})
	s.uncount(sharer{b, i})
	b.have.clear(i)
	b.checked.clear(i)
	b.dirty[i] = time.Time{}
}

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

// Lend opens the file of a blob at off if n bytes from there can be read as they
// are: every chunk has been checked by this process. The caller closes it.
func (s *Disk) Lend(d digest.Digest, off, n int64) (*os.File, bool) {
	if n <= 0 || !s.lendable(d, off, n) {
		return nil, false
	}
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, false
	}
	if info, err := f.Stat(); err != nil || info.Size() < off+n {
		f.Close()
		return nil, false // cut short: the chunk's reader will find out and drop it
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil || !s.lendable(d, off, n) || !s.current(f, d) {
		f.Close()
		return nil, false
	}
	return f, true
}

// current reports whether f is the file of a blob still: it may have been dropped and
// begun anew between the look at its chunks and the opening. Once f is open, to be
// lendable and then current means that the chunks were looked up in f.
func (s *Disk) current(f *os.File, d digest.Digest) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(s.path(d))
	return err == nil && os.SameFile(opened, now)
}

// Find returns a chunk of any blob that has the SHA-256 digest d, checked, and which
// one it is; or [chunk.ErrNotFound].
func (s *Disk) Find(ctx context.Context, d digest.Digest) ([]byte, chunk.Ref, error) {
	ref, ok := s.findDigest(d)
	if !ok {
		return nil, ref, chunk.ErrNotFound
	}
	p, err := s.Get(ctx, ref)
	if err == nil && digest.FromBytes(p) != d {
		err = chunk.ErrNotFound // it has changed since it was indexed
	}
	return p, ref, err
}

func (s *Disk) lendable(d digest.Digest, off, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	if b == nil || s.cfg.VerifyAlways || off+n > b.total {
		return false
	}
	b.read = time.Now()
	return b.checked.all(int(off/chunk.Size), int((off+n-1)/chunk.Size)+1)
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
