package chunkstore_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
)

// holds is what a blob of these tests holds: its JSON says so.
func holds(p []byte) []digest.Digest {
	var o struct{ Holds []digest.Digest }
	_ = json.Unmarshal(p, &o)
	return o.Holds
}

// holder is a blob that holds others; seed tells it from others that hold the same.
func holder(t *testing.T, seed int, held ...storetest.Blob) storetest.Blob {
	t.Helper()
	digests := []digest.Digest{}
	for _, b := range held {
		digests = append(digests, b.Blob())
	}
	p, err := json.Marshal(map[string]any{"seed": seed, "holds": digests})
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Blob{Map: grid(t, p), Bytes: p}
}

func grid(t *testing.T, p []byte) *chunk.Map {
	t.Helper()
	m, err := chunk.Grid(digest.FromBytes(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// small and large are blobs of one chunk and of several.
func small(t *testing.T, seed int) storetest.Blob {
	return storetest.NewBlob(t, digest.SHA256, 5000, uint64(seed))
}

func large(t *testing.T, seed int) storetest.Blob {
	return storetest.NewBlob(t, digest.SHA256, 2*chunk.Size+1, uint64(seed))
}

// prove makes the store know that a blob is what its digest says.
func prove(s *chunkstore.Disk, b storetest.Blob) { s.Prove(b.Blob(), b.Size()) }

// shrink evicts until what is kept has the size of some blobs.
func shrink(t *testing.T, s *chunkstore.Disk, to ...storetest.Blob) {
	t.Helper()
	size := int64(0)
	for _, b := range to {
		size += b.Size()
	}
	if _, err := s.GC(size); err != nil {
		t.Fatal(err)
	}
}

func complete(t *testing.T, s *chunkstore.Disk, b storetest.Blob) bool {
	t.Helper()
	info, err := s.Stat(b.Blob())
	return err == nil && info.Stored == b.Size()
}

func TestWhatIsHeldStaysAsLongAsItsHolder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, chunkstore.Config{Held: holds})
	config, compat, layer := small(t, 1), large(t, 2), large(t, 3)
	manifest := holder(t, 1, config)
	index := holder(t, 2, manifest, compat)
	for _, b := range []storetest.Blob{config, compat, manifest, index, layer} {
		fill(t, s, b)
		prove(s, b)
	}
	var later []storetest.Blob
	for i := range 10 {
		later = append(later, small(t, 100+i))
		fill(t, s, later[i])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, chunkstore.Config{Held: holds})
	if !has(t, s, index, 0) { // which is how it is read last
		t.Fatal("the index is not there")
	}
	shrink(t, s, index, manifest, config, compat)
	for name, b := range map[string]storetest.Blob{"index": index, "manifest": manifest, "config": config, "nested blob": compat} {
		if !complete(t, s, b) {
			t.Errorf("the %s is gone", name)
		}
	}
	for _, b := range append(later, layer) {
		if complete(t, s, b) {
			t.Errorf("%s is there, which nothing holds and which was read before the index", b.Blob())
		}
	}
	shrink(t, s, manifest, config, compat)
	if complete(t, s, index) || !complete(t, s, manifest) || !complete(t, s, config) {
		t.Error("not the index went first, of it and what it holds")
	}
}

func TestWhatIsHeldByWhatIsReadStays(t *testing.T) {
	s := open(t, t.TempDir(), chunkstore.Config{Held: holds})
	compat := large(t, 1)
	index := holder(t, 1, compat)
	fill(t, s, compat)
	prove(s, compat) // or the store would read it, to find out
	fill(t, s, index)
	release := s.Retain(index.Blob(), index.Size())
	shrink(t, s)
	if !complete(t, s, index) || !complete(t, s, compat) {
		t.Error("gone while its index is being read")
	}
	release()
	shrink(t, s)
	if complete(t, s, index) || complete(t, s, compat) {
		t.Error("there for no reason")
	}
}

// TestWhatIsDamagedHoldsNothing: a file that is not its blob any more is not believed.
func TestWhatIsDamagedHoldsNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, chunkstore.Config{Held: holds})
	compat, other := small(t, 1), small(t, 2)
	index := holder(t, 1, compat)
	for _, b := range []storetest.Blob{compat, index, other} {
		fill(t, s, b)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	path := blobFile(dir, index.Blob())
	if err := os.WriteFile(path, bytes.Replace(index.Bytes, []byte(`"seed":1`), []byte(`"seed":2`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if !has(t, s, other, 0) {
		t.Fatal("not there")
	}
	shrink(t, s, index, other)
	if complete(t, s, compat) || !complete(t, s, index) || !complete(t, s, other) {
		t.Error("the order is not that of reads")
	}
}

// TestALargeHolderIsNoLayer: manifests may have several chunks too.
func TestALargeHolderIsNoLayer(t *testing.T) {
	s := open(t, t.TempDir(), chunkstore.Config{Held: holds})
	var many []storetest.Blob
	for i := range 20_000 {
		many = append(many, storetest.Blob{Map: grid(t, fmt.Append(nil, i))})
	}
	index, layer := holder(t, 1, many...), large(t, 1)
	if index.Len() < 2 {
		t.Fatal("it has one chunk")
	}
	for _, b := range []storetest.Blob{index, layer} {
		fill(t, s, b)
		prove(s, b)
	}
	shrink(t, s, index)
	if !complete(t, s, index) || complete(t, s, layer) {
		t.Error("the layer, which was read later, outlived it")
	}
}

// TestNobodyLosesWhatItHolds evicts from random graphs bit by bit.
func TestNobodyLosesWhatItHolds(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		s := open(t, t.TempDir(), chunkstore.Config{Held: holds})
		var all []storetest.Blob
		held := make(map[digest.Digest][]storetest.Blob)
		for i := range 40 {
			b := small(t, i)
			if rng.IntN(8) == 0 {
				b = large(t, i)
			}
			if i > 0 && rng.IntN(2) == 0 {
				var some []storetest.Blob
				for range 1 + rng.IntN(3) {
					some = append(some, all[rng.IntN(len(all))])
				}
				b = holder(t, i, some...)
				held[b.Blob()] = some
			}
			all = append(all, b)
			fill(t, s, b)
		}
		for s.Usage().Bytes > 0 {
			b := all[rng.IntN(len(all))]
			_ = has(t, s, b, 0)
			if _, err := s.GC(s.Usage().Bytes - 1 - rng.Int64N(50_000)); err != nil {
				t.Fatal(err)
			}
			for _, b := range all {
				for _, h := range held[b.Blob()] {
					if complete(t, s, b) && !complete(t, s, h) {
						t.Fatalf("seed %d: %s lost %s", seed, b.Blob(), h.Blob())
					}
				}
			}
		}
	}
}
