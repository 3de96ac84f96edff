package chunkstore_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
)

// digests checks the digests of n chunks of a blob from first on.
func digests(t *testing.T, s *chunkstore.Disk, b storetest.Blob, first, n int) {
	t.Helper()
	all, err := s.Digests(context.Background(), b.Blob(), b.Size(), first, n)
	if err != nil || all.Len() != n {
		t.Fatalf("%d digests from %d: %d, %v", n, first, all.Len(), err)
	}
	for i := range n {
		if want := digest.FromBytes(b.Chunk(first + i)); all.At(i) != want {
			t.Errorf("chunk %d: %s, want %s", first+i, all.At(i), want)
		}
	}
}

func TestDigestsOfABlobThatHasMatched(t *testing.T) {
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		dir := t.TempDir()
		b := storetest.NewBlob(t, algorithm, 3*chunk.Size+17, 1)
		s := open(t, dir, chunkstore.Config{})
		fill(t, s, b)
		none := func(why string, total int64) {
			t.Helper()
			if all, err := s.Digests(context.Background(), b.Blob(), total, 0, 1); !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("%s: %d digests, %v", why, all.Len(), err)
			}
			if _, err := s.Match(context.Background(), b.At(0), digest.FromBytes(b.Chunk(0))); why != "of another size" && !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("%s: a chunk matches: %v", why, err)
			}
		}
		none("before it has matched", b.Size())
		read(t, s, b, b, nil)
		written(t, s)
		none("of another size", b.Size()-1)
		digests(t, s, b, 1, 2)
		for _, r := range [][2]int{{-1, 1}, {0, 0}, {0, 5}, {4, 1}, {1 << 40, 1}} {
			if _, err := s.Digests(context.Background(), b.Blob(), b.Size(), r[0], r[1]); err == nil || errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("%d digests from %d: %v", r[1], r[0], err)
			}
		}
		for range 2 { // what was made is found by digest, and after a restart too
			p, ref, err := s.Find(context.Background(), digest.FromBytes(b.Chunk(2)))
			if err != nil || !bytes.Equal(p, b.Chunk(2)) || ref.Key() != b.At(2).Key() {
				t.Errorf("found %s, %d bytes, %v", ref, len(p), err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, chunkstore.Config{})
		}
		digests(t, s, b, 0, 4)
		s.Evict(b.Blob())
		none("after it was evicted", b.Size())
	}
}

func TestAChunkThatWasComparedIsReadAgainOnlyIfItIsTheOne(t *testing.T) {
	dir := t.TempDir()
	b := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 1)
	s := open(t, dir, chunkstore.Config{})
	read(t, s, b, b, nil)
	other := digest.FromString("another chunk")
	match := func(i int, want digest.Digest) []byte {
		t.Helper()
		p, err := s.Match(context.Background(), b.At(i), want)
		if err != nil && !errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("chunk %d: %v", i, err)
		}
		return p
	}
	for i := range 2 {
		if match(i, other) != nil || !bytes.Equal(match(i, digest.FromBytes(b.Chunk(i))), b.Chunk(i)) {
			t.Errorf("chunk %d was not compared", i)
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(blobFile(dir, b.Blob()), 0); err != nil {
		t.Fatal(err)
	}
	stored := s.Usage().Bytes
	if match(0, other) != nil || s.Usage().Bytes != stored {
		t.Error("it was read to be compared again")
	}
	if _, err := s.Match(context.Background(), b.At(1), digest.FromBytes(b.Chunk(1))); !chunk.IsCorrupt(err) {
		t.Errorf("a chunk that is gone: %v", err)
	}
}

// TestDamageIsFoundThoughItWasDigested: what is on disk when a digest is made does not count
// for more than what the blob was proven by.
func TestDamageIsFoundThoughItWasDigested(t *testing.T) {
	dir := t.TempDir()
	b := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 1)
	s := open(t, dir, chunkstore.Config{})
	read(t, s, b, b, nil)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(blobFile(dir, b.Blob()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), chunk.Size+1000); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Digests(context.Background(), b.Blob(), b.Size(), 0, 3); err != nil {
		t.Fatal(err)
	}
	report, err := s.Fsck(context.Background(), nil, nil)
	if err != nil || report.Wrong != 1 || has(t, s, b, 1) || !has(t, s, b, 0) || !has(t, s, b, 2) {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestWholeBlobsBySize(t *testing.T) {
	s := open(t, t.TempDir(), chunkstore.Config{SyncEvery: time.Hour}) // nothing is proven in the background
	var blobs []storetest.Blob
	for i := range 4 {
		b := storetest.NewBlob(t, digest.SHA256, (2+i)*chunk.Size, uint64(i))
		blobs = append(blobs, b)
		if i == 3 {
			fill(t, s, b) // which has not matched
		} else {
			read(t, s, b, b, nil)
		}
		time.Sleep(time.Millisecond)
	}
	if !has(t, s, blobs[0], 0) { // which is how it is read last
		t.Fatal("a blob is not there")
	}
	for _, tt := range []struct {
		least, most int64
		want        []int64
	}{{0, 1 << 40, []int64{2, 4, 3}}, {3 << 20, 4 << 20, []int64{4, 3}}, {4<<20 + 1, 1 << 40, nil}} {
		var got []int64
		for _, w := range s.Wholes(tt.least, tt.most) {
			got = append(got, w.Size>>20)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("from %d to %d: %d MiB, want %d", tt.least, tt.most, got, tt.want)
		}
	}
}

// TestADroppedBlobHidesNoOther that has its chunks.
func TestADroppedBlobHidesNoOther(t *testing.T) {
	s := open(t, t.TempDir(), chunkstore.Config{SyncEvery: time.Hour})
	v1 := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 1)
	v2 := newVersion(t, v1, 0)
	fillMapped(t, s, v1)
	written(t, s)
	fillMapped(t, s, v2)
	s.Drop(v2.Blob())
	if ref, ok := s.Place(mapped(v1, 1).Digest); !ok || ref.Key() != v1.At(1).Key() {
		t.Errorf("the chunk is found at %s, %v", ref, ok)
	}
}
