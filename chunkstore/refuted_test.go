package chunkstore

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
)

// TestWhatIsPutWhileABlobIsRefutedDoesNotStay: it came with the wrong bytes, and the next reader would find it. Who
// is told of that hears of it before anything is dropped.
func TestWhatIsPutWhileABlobIsRefutedDoesNotStay(t *testing.T) {
	b := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 1)
	var s *Disk
	told := 0
	s, err := Open(t.TempDir(), Config{SyncEvery: time.Hour, Watch: func(d digest.Digest, e Event) {
		if e == Refuted {
			told++
			if !s.Has(b.At(0)) {
				t.Error("it was dropped before anybody knew")
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Put(t.Context(), b.At(0), b.Chunk(0)); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	held, drops, err := s.hold(b.At(1)) // as Put does, which is at it
	if err != nil {
		t.Fatal(err)
	}
	s.Refute(b.Blob())
	if err := s.write(held, b.At(1), b.Chunk(1), drops, false); err != nil {
		t.Fatal(err)
	}
	s.release(held)
	if told != 1 || s.Has(b.At(0)) || s.Has(b.At(1)) {
		t.Errorf("refuted %d times; the store has chunk 0: %v, and 1: %v", told, s.Has(b.At(0)), s.Has(b.At(1)))
	}
	if err := s.Put(t.Context(), b.At(1), b.Chunk(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err != nil || !s.Has(b.At(1)) {
		t.Errorf("what comes after is not stored: %v", err)
	}
}

// TestSmallBlobsDoNotGoInPlaceOfLayersThatAreRead in the moment, unless that is so again and again.
func TestSmallBlobsDoNotGoInPlaceOfLayersThatAreRead(t *testing.T) {
	s, err := Open(t.TempDir(), Config{SyncEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	layer, small := storetest.NewBlob(t, digest.SHA256, 2*chunk.Size, 1), storetest.NewBlob(t, digest.SHA256, 1000, 2)
	for _, b := range []storetest.Blob{small, layer} {
		for i := range b.Len() {
			if err := s.Put(t.Context(), b.At(i), b.Chunk(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	for last, want := range map[bool]int{false: 0, true: 1} {
		order := s.evictionOrder()
		if _, err := s.Get(t.Context(), layer.At(0)); err != nil { // since
			t.Fatal(err)
		}
		s.mu.Lock()
		still, all := s.untouched(order, last)
		s.mu.Unlock()
		if len(still) != want || all {
			t.Errorf("last %v: %d blobs may go, want %d; the order is up to date: %v", last, len(still), want, all)
		}
	}
}
