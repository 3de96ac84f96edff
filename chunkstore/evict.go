package chunkstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Watermarks, as parts of the budget: above the high one, blobs are evicted
// until the low one is reached.
const highWatermark, lowWatermark = 0.95, 0.90

// ErrFull says that the budget leaves no room for a chunk.
var ErrFull = errors.New("store is full: everything in it is being read or written")

// makeRoom makes room for n bytes below the budget.
func (s *Disk) makeRoom(n int64) error {
	if s.cfg.Budget == 0 || s.over(float64(s.cfg.Budget)-float64(n)) <= 0 {
		return nil
	}
	// What is being written is held, and what it would be better to keep would go in its place.
	s.awaitWrites(func(*blob) bool { return true })
	s.evict(s.over(float64(s.cfg.Budget)*lowWatermark - float64(n)))
	if s.over(float64(s.cfg.Budget)-float64(n)) > 0 {
		return ErrFull
	}
	return nil
}

func (s *Disk) evictAboveWatermark() {
	if s.cfg.Budget > 0 && s.over(float64(s.cfg.Budget)*highWatermark) > 0 {
		s.evict(s.over(float64(s.cfg.Budget) * lowWatermark))
	}
}

// GC evicts blobs until at most keep bytes are stored, or with a negative keep as
// many as the low watermark allows. What is being read stays. It returns the
// number of bytes that were evicted.
func (s *Disk) GC(keep int64) (freed int64, err error) {
	if err := s.Sync(); err != nil {
		return 0, err
	}
	limit := float64(keep)
	if keep < 0 {
		if s.cfg.Budget == 0 {
			return 0, nil
		}
		limit = float64(s.cfg.Budget) * lowWatermark
	}
	if n := s.over(limit); n > 0 {
		freed = s.evict(n)
	}
	return freed, nil
}

// over returns how many bytes are stored above limit, here and below.
func (s *Disk) over(limit float64) int64 {
	below := int64(0)
	if s.cfg.Below != nil {
		below = s.cfg.Below.over(0)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used + below - int64(limit)
}

// evict removes blobs of at least n bytes together, or all that can go, and
// returns how much that was.
func (s *Disk) evict(n int64) (freed int64) {
	if s.cfg.Below != nil {
		if freed = s.cfg.Below.evict(n); freed >= n {
			return freed
		}
	}
	return freed + s.evictHere(n-freed)
}

func (s *Disk) evictHere(n int64) (freed int64) {
	const orders = 3 // that may be out of date, for want of a quiet moment
	for i := range orders {
		order, current := s.evictionOrder(), false
		freed += s.remove(func() (still []*blob) {
			still, current = s.untouched(order, i == orders-1)
			return still
		}, n-freed)
		if current || freed >= n {
			break
		}
	}
	return freed
}

// Evict removes blobs that nobody reads, and returns how many bytes that freed.
func (s *Disk) Evict(blobs ...digest.Digest) (freed int64) {
	return s.remove(func() (order []*blob) {
		for _, d := range blobs {
			if b := s.blobs[d]; b != nil && b.users == 0 && b.have.count() > 0 {
				order = append(order, b)
			}
		}
		return order
	}, math.MaxInt64)
}

// remove removes the blobs that choose returns, the first first, until n bytes are
// freed, and returns how much that was.
func (s *Disk) remove(choose func() []*blob, n int64) (freed int64) {
	s.committing.Lock()
	defer s.committing.Unlock()
	gone, freed := s.takeOut(choose, n)
	if len(gone) == 0 {
		return 0
	}
	err := s.update(func(tx *bbolt.Tx) error {
		for _, d := range gone {
			if err := deleteBlob(tx, d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		// The records will be found to have no file when the store is opened.
		s.cfg.Report(fmt.Errorf("store %s: evict: index: %w", s.dir, err))
	}
	if err := os.RemoveAll(s.trash()); err != nil {
		s.cfg.Report(fmt.Errorf("store %s: evict: %w", s.dir, err))
	}
	return freed
}

// takeOut forgets blobs and moves their files aside. A blob that is put again
// from now on gets a new file, which the removal of the old one must not hit:
// hence the move, made under the lock because it takes no time.
func (s *Disk) takeOut(choose func() []*blob, n int64) (gone []digest.Digest, freed int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.MkdirAll(s.trash(), 0o700); err != nil {
		s.cfg.Report(fmt.Errorf("store %s: evict: %w", s.dir, err))
		return nil, 0
	}
	for _, b := range choose() {
		if freed >= n {
			break
		}
		err := os.Rename(s.path(b.digest), filepath.Join(s.trash(), b.digest.Encoded()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.cfg.Report(fmt.Errorf("blob %s: evict: %w", b.digest, err))
			continue
		}
		if b.whole() {
			s.cfg.Watch(b.digest, Lost)
		}
		delete(s.blobs, b.digest)
		freed += s.uncountAll(b)
		gone = append(gone, b.digest)
	}
	return gone, freed
}

func (s *Disk) trash() string { return filepath.Join(s.dir, "evicted") }

// deleteBlob takes all records of a blob out of the index.
func deleteBlob(tx *bbolt.Tx, d digest.Digest) error {
	places := tx.Bucket(digestsBucket)
	cursor := tx.Bucket(chunksBucket).Cursor()
	var keys [][]byte
	for k, v := cursor.Seek([]byte(d)); k != nil && bytes.HasPrefix(k, []byte(d)); k, v = cursor.Next() {
		keys = append(keys, bytes.Clone(k))
		_, sum, err := decodeChunk(v)
		if err != nil || sum.digest == "" {
			continue
		}
		if owner, _, err := decodePlace(places.Get([]byte(sum.digest))); err == nil && owner == d {
			if err := places.Delete([]byte(sum.digest)); err != nil {
				return err
			}
		}
	}
	for _, k := range keys {
		if err := tx.Bucket(chunksBucket).Delete(k); err != nil {
			return err
		}
	}
	return tx.Bucket(blobsBucket).Delete([]byte(d))
}

// settleFiles makes files and index agree after a crash: files without a record
// are removed, records without a file lose their chunks. With adopt, files
// without a record whose bytes have the digest they are named for are taken
// over instead.
func (s *Disk) settleFiles(adopt bool) error {
	if err := os.RemoveAll(s.trash()); err != nil {
		return err
	}
	there := make(map[digest.Digest]bool)
	root := filepath.Join(s.dir, "blobs")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		d := digestOf(root, path)
		if d != "" && s.blobs[d] == nil && adopt {
			s.adopt(d, path)
		}
		if d == "" || s.blobs[d] == nil {
			return os.Remove(path)
		}
		there[d] = true
		return nil
	})
	if err != nil {
		return err
	}
	for d, b := range s.blobs {
		for i := 0; !there[d] && i < b.chunks() && b.have.count() > 0; i++ {
			if b.have.has(i) {
				b.have.clear(i)
				b.dirty[i] = time.Time{}
			}
		}
	}
	return nil
}

// digestOf returns the digest that a file below root is named for, or "".
func digestOf(root, path string) digest.Digest {
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return ""
	}
	algorithm := filepath.Dir(filepath.Dir(rel))
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), filepath.Base(path))
	if d.Validate() != nil || filepath.Base(filepath.Dir(rel)) != d.Encoded()[:2] {
		return ""
	}
	return d
}

// adopt takes over a file that has the digest it is named for.
func (s *Disk) adopt(d digest.Digest, path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() > chunk.MaxBlobSize {
		return
	}
	b := newBlob(d, info.Size())
	prefix := chunk.NewPrefix(d)
	for i := range b.chunks() {
		p := make([]byte, b.ref(i).Size)
		if _, err := f.ReadAt(p, b.ref(i).Offset); err != nil && len(p) > 0 {
			return
		}
		_, _ = prefix.Write(p)
		b.have.set(i)
		b.checked.set(i)
		b.sums.put(i, sum{digest: rawWant(s.named(b.ref(i), p)), link: prefix.Link()})
		b.dirty[i] = time.Now()
	}
	if prefix.Matches() {
		b.proven, b.changed, b.read = true, true, info.ModTime()
		s.blobs[d] = b
	}
}
