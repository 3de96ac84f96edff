package chunkstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
)

// TestClonesThatWereSyncedSurviveAPowerCut: what the device has then is all that is left.
func TestClonesThatWereSyncedSurviveAPowerCut(t *testing.T) {
	storetest.OnEachThatShares(t, func(t *testing.T, fs *storetest.FileSystem) {
		dir := fs.Folder(t)
		s := open(t, dir, chunkstore.Config{SyncEvery: time.Hour})
		v1 := storetest.NewBlob(t, digest.SHA256, 8*chunk.Size+100_001, 1)
		v2 := newVersion(t, v1, 3)
		fill(t, s, v1)
		fill(t, s, v2) // the source is not synced itself
		written(t, s)
		want := s.Usage()
		image, err := os.ReadFile(fs.Image)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		if err := fs.Unmount(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fs.Image, image, 0); err != nil {
			t.Fatal(err)
		}
		if err := fs.Mount(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, chunkstore.Config{})
		checkBlob(t, s, v1)
		checkBlob(t, s, v2)
		if got := s.Usage(); got != want {
			t.Errorf("usage is %+v, and was %+v", got, want)
		}
	})
}

// versions are blobs that have most in common.
func versions(t testing.TB) []storetest.Blob {
	base := storetest.NewBlob(t, digest.SHA256, 5*chunk.Size+70_001, 1)
	copy(base.Bytes[chunk.Size:3*chunk.Size], make([]byte, 2*chunk.Size)) // and one chunk twice
	var all []storetest.Blob
	for i := range 5 {
		all = append(all, newVersion(t, base, i, (i+2)%6))
	}
	return all
}

// shareUntilKilled puts and evicts versions, in an order that seed decides, for a few seconds
// at most.
func shareUntilKilled(dir, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	s, err := chunkstore.Open(dir, chunkstore.Config{SyncEvery: 2 * time.Millisecond})
	if err != nil {
		return err
	}
	blobs := versions(new(testing.B))
	for _, b := range blobs[:2] { // something is shared, however soon the kill comes
		fill(new(testing.B), s, b)
	}
	if err := s.Sync(); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(n, 0))
	fmt.Println("working")
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		b := blobs[rng.IntN(len(blobs))]
		if rng.IntN(20) == 0 {
			s.Evict(b.Blob())
		}
		ref := b.At(rng.IntN(b.Len()))
		if rng.IntN(2) == 0 {
			ref = mapped(b, ref.Index())
		}
		if err := s.Put(context.Background(), ref, b.Chunk(ref.Index())); err != nil {
			return err
		}
	}
	return nil
}

// TestKilledWhileItShares: no wrong byte is there after a kill, and the disk is free when all
// that shares it is gone.
func TestKilledWhileItShares(t *testing.T) {
	storetest.OnEachThatShares(t, func(t *testing.T, fs *storetest.FileSystem) {
		blobs := versions(t)
		dir, empty, shared := filepath.Join(fs.Dir, "store"), fs.Used(t), int64(0)
		kill(t, 6, shareDir+"="+dir, func() {
			s, err := chunkstore.Open(dir, chunkstore.Config{SyncEvery: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			shared += s.Usage().Shared
			for _, b := range blobs {
				for i := range b.Len() {
					_ = has(t, s, b, i)
				}
			}
			_ = s.Close()
		})
		if shared == 0 {
			t.Error("nothing was ever shared: the test tests nothing")
		}
		s := open(t, dir, chunkstore.Config{SyncEvery: time.Hour})
		if _, err := s.GC(0); err != nil || s.Usage() != (chunkstore.Usage{}) {
			t.Errorf("usage is %+v at the end: %v", s.Usage(), err)
		}
		eventually(t, "the disk is free", func() bool { return fs.Used(t)-empty < chunk.Size })
	})
}
