package chunkstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
)

// blobFile returns where a store keeps a blob.
func blobFile(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}

func TestDamageOnDiskIsHealedAndReportedOnce(t *testing.T) {
	for name, damage := range map[string]func(file string) error{
		"flipped bit": func(file string) error {
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			p := make([]byte, 1)
			_, err = f.ReadAt(p, 2*chunk.Size+5)
			p[0] ^= 0x10
			if err == nil {
				_, err = f.WriteAt(p, 2*chunk.Size+5)
			}
			return errors.Join(err, f.Close())
		},
		"cut short": func(file string) error { return os.Truncate(file, 2*chunk.Size+100) },
		"gone":      os.Remove,
	} {
		for _, proven := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, proven %v", name, proven), func(t *testing.T) {
				dir := t.TempDir()
				var f faults
				b := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 6)
				s := open(t, dir, chunkstore.Config{SyncEvery: time.Hour})
				fill(t, s, b)
				if proven {
					read(t, s, b, b, nil)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if err := damage(blobFile(dir, b.Blob())); err != nil {
					t.Fatal(err)
				}
				s = open(t, dir, chunkstore.Config{})
				read(t, s, b, b, f.report)
				if want := map[string]int{"gone": 0}[name]; name != "gone" && f.count() != 1 || name == "gone" && f.count() != want {
					t.Errorf("reported: %v", f.list())
				}
				for i := range b.Len() {
					if !has(t, s, b, i) {
						t.Errorf("chunk %d was not healed", i)
					}
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, dir, chunkstore.Config{})
				report, err := s.Fsck(t.Context(), nil, func(err error) { t.Error(err) })
				if err != nil || report.Chunks != b.Len() {
					t.Errorf("fsck: %+v, %v", report, err)
				}
			})
		}
	}
}

func TestFsckDropsWhatIsWrongAndNothingElse(t *testing.T) {
	testDropsOnlyDamage(t, func(s *chunkstore.Disk, _ digest.Digest) {
		var found []error
		report, err := s.Fsck(t.Context(), nil, func(err error) { found = append(found, err) })
		if err != nil || report.Blobs != 2 || report.Chunks != 6 || report.Wrong != 2 || len(found) != 2 {
			t.Errorf("fsck: %+v, %v, found %v", report, err, found)
		}
	})
}

// TestDamageIsNotBlamedOnTheUpstream: a blob that does not match its digest for
// what the disk did loses the damaged chunks, and no more.
func TestDamageIsNotBlamedOnTheUpstream(t *testing.T) {
	testDropsOnlyDamage(t, func(s *chunkstore.Disk, d digest.Digest) { s.Refute(d) })
}

func testDropsOnlyDamage(t *testing.T, check func(*chunkstore.Disk, digest.Digest)) {
	dir := t.TempDir()
	s := open(t, dir, chunkstore.Config{SyncEvery: time.Hour}) // nothing is proven behind the test's back
	a, b := storetest.NewBlob(t, digest.SHA256, 5*chunk.Size, 7), storetest.NewBlob(t, digest.SHA256, 900, 8)
	fill(t, s, a)
	fill(t, s, b)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 3*chunk.Size + 9} {
		f, err := os.OpenFile(blobFile(dir, a.Blob()), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), off); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	check(s, a.Blob())
	for i, want := range []bool{false, true, true, false, true} {
		if got := has(t, s, a, i); got != want {
			t.Errorf("chunk %d: there %v, want %v", i, got, want)
		}
	}
	if !has(t, s, b, 0) {
		t.Error("the other blob is gone")
	}
}

func TestADamagedIndexIsSetAsideAndFilesAreAdopted(t *testing.T) {
	dir := t.TempDir()
	whole, partial := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size+1, 1), storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 2)
	s := open(t, dir, chunkstore.Config{})
	fill(t, s, whole)
	if err := s.Put(t.Context(), partial.At(1), partial.Chunk(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(dir, "index.db")
	good, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 60 {
		bad := bytes.Clone(good)
		switch round % 3 {
		case 0:
			bad = bad[:rng.IntN(len(bad))]
		case 1:
			for range 1 + rng.IntN(64) {
				bad[rng.IntN(len(bad))] ^= byte(1 + rng.IntN(255))
			}
		default:
			at := rng.IntN(len(bad) / 4096)
			copy(bad[at*4096:(at+1)*4096], storetest.Content(4096, uint64(round)))
		}
		if err := os.WriteFile(index, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := chunkstore.Open(dir, chunkstore.Config{SyncEvery: 20 * time.Millisecond})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		read(t, s, whole, whole, nil) // has what it has, and no wrong byte
		if err := s.Close(); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if err := os.WriteFile(index, []byte("this is no index"), 0o600); err != nil {
		t.Fatal(err)
	}
	var f faults
	s = open(t, dir, chunkstore.Config{Report: f.report})
	if f.count() != 1 || !s.Proven(whole.Blob()) {
		t.Errorf("reported %v; adopted: %v", f.list(), s.Proven(whole.Blob()))
	}
}

func TestANewerFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "VERSION"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := chunkstore.Open(dir, chunkstore.Config{}); err == nil {
		t.Error("a directory of a newer format was opened")
	}
}
