package chunkstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
)

// lent reports whether the store lends the file of a blob, which then is the blob.
func lent(t *testing.T, s *chunkstore.Disk, b storetest.Blob) bool {
	t.Helper()
	f, ok := s.LendWhole(b.Blob(), b.Size())
	if !ok {
		return false
	}
	defer f.Close()
	if p, err := io.ReadAll(f); err != nil || !bytes.Equal(p, b.Bytes) {
		t.Errorf("%s: a file of %d bytes that is not the blob was lent, %v", b.Blob(), len(p), err)
	}
	return true
}

func TestAWholeBlobIsLent(t *testing.T) {
	dir := t.TempDir()
	b, small := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size+17, 1), storetest.NewBlob(t, digest.SHA256, 100, 2)
	s := open(t, dir, chunkstore.Config{SyncEvery: time.Hour}) // it is not to prove anything by itself
	for i := range b.Len() {
		if lent(t, s, b) {
			t.Errorf("with %d chunks of %d", i, b.Len())
		}
		if err := s.Put(context.Background(), b.At(i), b.Chunk(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if lent(t, s, b) {
		t.Error("without having matched")
	}
	read(t, s, b, b, nil)
	fill(t, s, small)
	written(t, s)
	if !lent(t, s, b) || !lent(t, s, small) {
		t.Error("not lent")
	}
	if f, ok := s.LendWhole(b.Blob(), b.Size()-1); ok {
		f.Close()
		t.Error("with another size")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, chunkstore.Config{})
	if lent(t, s, b) {
		t.Error("not checked by this process")
	}
	if err := s.CheckWhole(context.Background(), b.Blob(), b.Size()); err != nil || !lent(t, s, b) {
		t.Errorf("not lent after the check: %v", err)
	}
	if s := open(t, t.TempDir(), chunkstore.Config{}); !errors.Is(s.CheckWhole(context.Background(), b.Blob(), b.Size()), chunk.ErrNotFound) {
		t.Error("a blob that is not there was checked")
	}
}

func TestAFileThatIsLentStaysWhatItIs(t *testing.T) {
	dir := t.TempDir()
	b := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size+17, 1)
	s := open(t, dir, chunkstore.Config{SyncEvery: time.Hour}) // nor is it hashed in the background
	read(t, s, b, b, nil)
	if err := s.Sync(); err != nil { // what is being written is not lent yet, nor evicted
		t.Fatal(err)
	}
	f, ok := s.LendWhole(b.Blob(), b.Size())
	if !ok {
		t.Fatal("not lent")
	}
	defer f.Close()
	still := func(after string) {
		t.Helper()
		p := make([]byte, b.Size())
		if _, err := f.ReadAt(p, 0); err != nil || !bytes.Equal(p, b.Bytes) {
			t.Errorf("after %s it is something else, %v", after, err)
		}
	}
	if freed := s.Evict(b.Blob()); freed != b.Size() || lent(t, s, b) {
		t.Errorf("%d bytes were freed", freed)
	}
	still("eviction")
	fill(t, s, b)
	still("a new beginning")
}

func TestPartsOfChunksAreRead(t *testing.T) {
	dir := t.TempDir()
	b, small := storetest.NewBlob(t, digest.SHA256, 2*chunk.Size+17, 1), storetest.NewBlob(t, digest.SHA256, 100, 2)
	s := open(t, dir, chunkstore.Config{})
	read(t, s, b, b, nil)
	fill(t, s, small)
	s.Drop(small.Blob()) // which is right, whatever comes under its name
	for again := range 2 {
		for _, b := range []storetest.Blob{b, small} {
			for i := range b.Len() {
				ref := b.At(i)
				for _, at := range []int64{0, ref.Size / 3, ref.Size - 1} {
					p := make([]byte, min(50, ref.Size-at))
					if err := s.ReadAt(context.Background(), ref, p, at); err != nil || !bytes.Equal(p, b.Chunk(i)[at:at+int64(len(p))]) {
						t.Errorf("%s at %d: %v", ref, at, err)
					}
				}
				if s.ReadAt(context.Background(), ref, make([]byte, 2), ref.Size-1) == nil {
					t.Error("more was read than there is")
				}
			}
		}
		if again > 0 {
			break
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, chunkstore.Config{}) // which has checked nothing
	}
	s.Evict(b.Blob())
	if err := s.ReadAt(context.Background(), b.At(0), make([]byte, 1), 0); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("what was evicted: %v", err)
	}
}

// TestAHoleInAProvenBlobTakesTheRightBytesAlone has the disk damage a chunk, and others
// than the blob's bytes put in its place.
func TestAHoleInAProvenBlobTakesTheRightBytesAlone(t *testing.T) {
	dir := t.TempDir()
	b := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size+17, 1)
	s := open(t, dir, chunkstore.Config{VerifyAlways: true})
	read(t, s, b, b, nil)
	if err := s.Sync(); err != nil { // what is still being written is not read from the disk
		t.Fatal(err)
	}
	path := filepath.Join(dir, "blobs", "sha256", b.Blob().Encoded()[:2], b.Blob().Encoded())
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), chunk.Size+5); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if has(t, s, b, 1) {
		t.Fatal("a damaged chunk was served")
	}
	prefix := chunk.NewPrefix(b.Blob())
	for i := range b.Len() {
		wrong := bytes.Repeat([]byte("wrong"), chunk.Size)[:b.At(i).Size]
		_, _ = prefix.Write(wrong)
		if err := s.Put(context.Background(), b.At(i), wrong); i == 1 && !chunk.IsCorrupt(err) {
			t.Errorf("wrong bytes in the hole: %v", err)
		}
		s.Link(b.At(i), prefix.Link())
	}
	s.Drop(b.Blob())
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	for i := range b.Len() {
		if has(t, s, b, i) != (i != 1) {
			t.Errorf("chunk %d", i)
		}
	}
	if err := s.Put(context.Background(), b.At(1), b.Chunk(1)); err != nil || !has(t, s, b, 1) {
		t.Errorf("the right bytes: %v", err)
	}
}

// BenchmarkSmallReads reads 4 KiB of chunks that have been checked: alone, and as a part
// of all.
func BenchmarkSmallReads(b *testing.B) {
	blob := storetest.NewBlob(b, digest.SHA256, 8*chunk.Size, 1)
	s := open(b, b.TempDir(), chunkstore.Config{})
	read(b, s, blob, blob, nil)
	p := make([]byte, 4096)
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if err := s.ReadAt(context.Background(), blob.At(i%8), p, int64(i%200)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("of all", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			all, err := s.Get(context.Background(), blob.At(i%8))
			if err != nil {
				b.Fatal(err)
			}
			copy(p, all[i%200*4096:])
		}
	})
}
