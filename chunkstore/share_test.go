package chunkstore_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
)

// newVersion returns a blob that differs from b in some chunks.
func newVersion(t testing.TB, b storetest.Blob, chunks ...int) storetest.Blob {
	t.Helper()
	p := bytes.Clone(b.Bytes)
	for _, i := range chunks {
		copy(p[b.At(i).Offset:], storetest.Content(int(b.At(i).Size), uint64(7000+i)))
	}
	m, err := chunk.Grid(digest.FromBytes(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Blob{Map: m, Bytes: p}
}

// mapped returns chunk i with its digest, as it is put by who has the blob's map.
func mapped(b storetest.Blob, i int) chunk.Ref {
	ref := b.At(i)
	ref.Digest = digest.FromBytes(b.Chunk(i))
	return ref
}

func fillMapped(t testing.TB, s chunk.Store, b storetest.Blob) {
	t.Helper()
	for i := range b.Len() {
		if err := s.Put(context.Background(), mapped(b, i), b.Chunk(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// checkBlob reads all of a blob from a store, each chunk as for the first time.
func checkBlob(t testing.TB, s *chunkstore.Disk, b storetest.Blob) {
	t.Helper()
	for i := range b.Len() {
		if !has(t, s, b, i) {
			t.Errorf("chunk %d of %d is gone", i, b.Len())
		}
	}
}

func TestStoreOnEachFileSystem(t *testing.T) {
	storetest.OnEachFileSystem(t, func(t *testing.T, fs *storetest.FileSystem) {
		storetest.Run(t, func(t *testing.T) chunk.Store { return open(t, fs.Folder(t), chunkstore.Config{}) })
	})
}

func TestWhatVersionsShareIsOnDiskOnce(t *testing.T) {
	storetest.OnEachFileSystem(t, func(t *testing.T, fs *storetest.FileSystem) {
		dir, empty := fs.Folder(t), fs.Used(t)
		// The last chunk ends within a block.
		v1 := storetest.NewBlob(t, digest.SHA256, 63*chunk.Size+100_001, 1)
		v2 := newVersion(t, v1, 10, 30, 50)
		const differs = 3 * chunk.Size
		s := open(t, dir, chunkstore.Config{SyncEvery: time.Hour})
		expect := func(when string, want chunkstore.Usage) {
			t.Helper()
			written(t, s)
			if got := s.Usage(); got != want {
				t.Errorf("%s: usage is %+v, want %+v", when, got, want)
			}
			eventually(t, when+": no more of the disk is used", func() bool { // XFS frees in the background
				return fs.Used(t)-empty <= want.Bytes*108/100+chunk.Size
			})
		}
		restart := func() {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, chunkstore.Config{SyncEvery: time.Hour})
		}

		fill(t, s, v1)
		written(t, s) // and digested
		fillMapped(t, s, v2)
		both := chunkstore.Usage{Bytes: v1.Size() + differs, Shared: v1.Size() - differs, Blobs: 2}
		if !fs.Shares {
			both = chunkstore.Usage{Bytes: 2 * v1.Size(), Blobs: 2}
		}
		expect("with both", both)
		if info, err := s.Stat(v2.Blob()); err != nil || info.Stored != v2.Size() {
			t.Errorf("of the second version %+v is stored: %v", info, err)
		}
		restart()
		expect("after a restart", both)
		checkBlob(t, s, v1)
		checkBlob(t, s, v2)

		if freed := s.Evict(v1.Blob()); freed != both.Bytes-v2.Size() {
			t.Errorf("to evict the first version freed %d bytes", freed)
		}
		one := chunkstore.Usage{Bytes: v2.Size(), Blobs: 1}
		expect("without the first", one)
		restart()
		expect("without the first, after a restart", one)
		checkBlob(t, s, v2)
		if report, err := s.Fsck(t.Context(), nil, nil); err != nil || report.Wrong+report.Failed > 0 || report.Bytes != v2.Size() {
			t.Errorf("fsck: %+v, %v", report, err)
		}

		fill(t, s, v1) // by its digest, which nobody gave, a chunk is found in what came last,
		written(t, s)
		s.Evict(v1.Blob())
		restart() // and then in what is left
		if ref, ok := s.Place(mapped(v1, 0).Digest); fs.Shares && ref.Blob != v2.Blob() {
			t.Errorf("a chunk that is shared no more is found at %s, %v", ref, ok)
		}
		if freed := s.Evict(v2.Blob()); freed != v2.Size() {
			t.Errorf("to evict all freed %d bytes", freed)
		}
		expect("at the end", chunkstore.Usage{Bytes: 0})
	})
}

// TestABudgetHoldsWhatIsShared: three versions of 16 MiB take no more than 20.
func TestABudgetHoldsWhatIsShared(t *testing.T) {
	storetest.OnEachThatShares(t, func(t *testing.T, fs *storetest.FileSystem) {
		s := open(t, fs.Folder(t), chunkstore.Config{Budget: 20 << 20})
		v1 := storetest.NewBlob(t, digest.SHA256, 16*chunk.Size, 1)
		all := []storetest.Blob{v1, newVersion(t, v1, 3), newVersion(t, v1, 5)}
		for _, v := range all { // as they come from a registry: there is never room for two
			fill(t, s, v)
			written(t, s)
		}
		for _, v := range all {
			checkBlob(t, s, v)
		}
		fill(t, s, storetest.NewBlob(t, digest.SHA256, 8*chunk.Size, 2))
		if u := s.Usage(); u.Bytes > 20<<20 {
			t.Errorf("usage is %+v", u)
		}
	})
}

// TestAChunkIsHashedWhereItMayBeShared, and nowhere else, for that costs as much again as to prove
// its blob.
func TestAChunkIsHashedWhereItMayBeShared(t *testing.T) {
	storetest.OnEachFileSystem(t, func(t *testing.T, fs *storetest.FileSystem) {
		s := open(t, fs.Folder(t), chunkstore.Config{SyncEvery: time.Hour}) // a sync hashes what nothing vouches for
		b := storetest.NewBlob(t, digest.SHA256, 2*chunk.Size, 1)
		fill(t, s, b)
		eventually(t, "it is written", func() bool { return s.Has(b.At(0)) && s.Has(b.At(1)) })
		if _, known := s.Place(mapped(b, 0).Digest); known != fs.Shares {
			t.Errorf("the chunk's digest is known: %v", known)
		}
	})
}

// TestADamagedIndexLosesNoShare: the blobs that are taken over are hashed for that.
func TestADamagedIndexLosesNoShare(t *testing.T) {
	storetest.OnEachThatShares(t, func(t *testing.T, fs *storetest.FileSystem) {
		dir := fs.Folder(t)
		s := open(t, dir, chunkstore.Config{})
		v1 := storetest.NewBlob(t, digest.SHA256, 8*chunk.Size+100_001, 1)
		v2, v3 := newVersion(t, v1, 3), newVersion(t, v1, 5)
		fill(t, s, v1)
		fill(t, s, v2)
		written(t, s)
		want := s.Usage()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		overwrite(t, filepath.Join(dir, "index.db"), 0, strings.Repeat("damage", 2000))
		s = open(t, dir, chunkstore.Config{})
		if got := s.Usage(); got != want || got.Shared == 0 {
			t.Errorf("usage is %+v, and was %+v", got, want)
		}
		written(t, s)
		fill(t, s, v3)
		written(t, s)
		if got := s.Usage(); got.Bytes != want.Bytes+chunk.Size {
			t.Errorf("with another version usage is %+v, and was %+v", got, want)
		}
	})
}

// TestADamagedSourceIsNotSpread: what a new version would share is wrong on disk.
func TestADamagedSourceIsNotSpread(t *testing.T) {
	storetest.OnEachThatShares(t, func(t *testing.T, fs *storetest.FileSystem) {
		var f faults
		dir := fs.Folder(t)
		s := open(t, dir, chunkstore.Config{Report: f.report, SyncEvery: time.Hour})
		v1 := storetest.NewBlob(t, digest.SHA256, 4*chunk.Size, 1)
		fillMapped(t, s, v1)
		written(t, s)
		overwrite(t, blobFile(dir, v1.Blob()), 2*chunk.Size+9, "damage")
		v2 := newVersion(t, v1, 0)
		fill(t, s, v2)
		checkBlob(t, s, v2)
		if got := f.list(); len(got) != 1 || !chunk.IsCorrupt(got[0]) {
			t.Errorf("reported: %v", got)
		}
		if s.Has(v1.At(2)) {
			t.Error("the damaged chunk is there still")
		}
		if u := s.Usage(); u.Bytes != 5*chunk.Size || u.Shared != 2*chunk.Size {
			t.Errorf("usage is %+v", u)
		}
	})
}

// TestDamageToSharedBytesIsFoundInEachBlob, though all was checked: the bytes on the disk are
// the same ones. Btrfs has sums of its own.
func TestDamageToSharedBytesIsFoundInEachBlob(t *testing.T) {
	fs := storetest.MakeFileSystem(t, "xfs")
	dir := fs.Folder(t)
	var f faults
	s := open(t, dir, chunkstore.Config{Report: f.report, SyncEvery: time.Hour})
	v1 := storetest.NewBlob(t, digest.SHA256, 4*chunk.Size, 1)
	v2 := newVersion(t, v1, 0)
	for _, b := range []storetest.Blob{v1, v2} {
		fillMapped(t, s, b)
		written(t, s)
	}
	fs.Sync(t)
	image, err := os.ReadFile(fs.Image)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(image, v1.Chunk(2)[:64]); n != 1 {
		t.Fatalf("the chunk is on disk %d times", n)
	}
	overwrite(t, fs.Image, int64(bytes.Index(image, v1.Chunk(2)[:64])), "damage")
	for _, b := range []storetest.Blob{v1, v2} {
		forgetCache(t, blobFile(dir, b.Blob()))
	}
	s.Refute(v1.Blob())
	if f.count() != 1 || s.Has(v1.At(2)) {
		t.Fatalf("reported: %v", f.list())
	}
	if has(t, s, v2, 2) || s.Has(v2.At(2)) {
		t.Error("the chunk of the other blob is there still")
	}
	read(t, s, v2, v2, f.report)
	checkBlob(t, s, v2)
}

// forgetCache has the kernel read a file from the disk when it is read next.
func forgetCache(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, file string, at int64, with string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(with), at); err != nil {
		t.Fatal(err)
	}
}

// TestSharesAddUp puts and evicts versions of blobs all at once. What is counted then is what is
// found on the disk.
func TestSharesAddUp(t *testing.T) {
	storetest.OnEachThatShares(t, func(t *testing.T, fs *storetest.FileSystem) {
		dir := fs.Folder(t)
		s := open(t, dir, chunkstore.Config{Budget: 14 << 20, SyncEvery: 5 * time.Millisecond})
		blobs := versions(t)
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(w), 0))
				for range 100 {
					b := blobs[rng.IntN(len(blobs))]
					i := rng.IntN(b.Len())
					switch rng.IntN(8) {
					case 0:
						s.Evict(b.Blob())
					case 1:
						s.Drop(b.Blob())
					case 2:
						_ = has(t, s, b, i)
					case 3:
						_ = s.Put(context.Background(), b.At(i), b.Chunk(i))
					default:
						_ = s.Put(context.Background(), mapped(b, i), b.Chunk(i))
					}
				}
			})
		}
		wg.Wait()
		for _, b := range blobs { // which what came last may have left with nothing in common
			for i := range 3 {
				_ = s.Put(context.Background(), mapped(b, i), b.Chunk(i))
			}
		}
		written(t, s)
		var stored int64
		for _, b := range blobs {
			if info, err := s.Stat(b.Blob()); err == nil {
				stored += info.Stored
			}
		}
		before := s.Usage()
		if before.Bytes+before.Shared != stored || before.Shared == 0 {
			t.Errorf("usage is %+v, %d bytes are stored", before, stored)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, chunkstore.Config{Budget: 14 << 20})
		if after := s.Usage(); after != before {
			t.Errorf("usage is %+v, and was %+v before the restart", after, before)
		}
		for _, b := range blobs {
			for i := range b.Len() {
				_ = has(t, s, b, i)
			}
		}
	})
}

// BenchmarkPut puts chunks that nobody has, and such that another blob has, and syncs them.
func BenchmarkPut(b *testing.B) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		for _, how := range []string{"new", "shared", "new/without digests", "shared/without digests"} {
			b.Run(kind+"/"+how, func(b *testing.B) {
				s := open(b, storetest.MakeFileSystem(b, kind).Folder(b), chunkstore.Config{SyncEvery: time.Hour})
				v1 := storetest.NewBlob(b, digest.SHA256, 32*chunk.Size, 1)
				v2 := newVersion(b, v1, 0)
				if strings.HasPrefix(how, "shared") {
					fillMapped(b, s, v1)
					written(b, s)
				}
				var refs []chunk.Ref
				for i := 1; i < v2.Len(); i++ {
					ref := mapped(v2, i)
					if strings.HasSuffix(how, "without digests") {
						ref.Digest = ""
					}
					refs = append(refs, ref)
				}
				b.SetBytes(int64(len(refs)) * chunk.Size)
				for b.Loop() {
					for _, ref := range refs {
						if err := s.Put(context.Background(), ref, v2.Chunk(ref.Index())); err != nil {
							b.Fatal(err)
						}
					}
					written(b, s)
					b.StopTimer()
					s.Evict(v2.Blob())
					b.StartTimer()
				}
			})
		}
	}
}
