package chunk_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// TestRunsOfASizeAreFetchedAsSuch, from wherever in one the reader begins, and are known to be of one stream.
func TestRunsOfASizeAreFetchedAsSuch(t *testing.T) {
	b := newBlob(t, 20*chunk.Size)
	for size, want := range map[int64]map[int][]int{
		1: {5: {5}, 6: {6}, 7: {7}, 8: {8}, 9: {9}, 10: {10}, 11: {11}},
		2: {5: {5}, 6: {6, 7}, 8: {8, 9}, 10: {10, 11}},
		4: {5: {5, 6, 7}, 8: {8, 9, 10, 11}},
	} {
		src := &noted{src: b, runs: make(map[int][]int)}
		r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 9 * chunk.Size, Run: size * chunk.Size}).OpenSection(t.Context(), chunk.Section{Offset: 5 * chunk.Size, Length: 6*chunk.Size + 1})
		for range 7 {
			if _, _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		}
		_ = r.Close()
		for first, run := range want {
			if got := src.runs[first]; !slices.Equal(got, run) {
				t.Errorf("by %d chunks: from chunk %d on %v were asked for at once, want %v", size, first, got, run)
			}
		}
		if src.alone > 0 {
			t.Errorf("by %d chunks: %d runs were asked for as if nothing more were read", size, src.alone)
		}
	}
}

// TestOneChunkIsNoStream: who reads here and there is not to wait for what only streams are worth.
func TestOneChunkIsNoStream(t *testing.T) {
	b := newBlob(t, 4*chunk.Size)
	for _, c := range []struct {
		section chunk.Section
		stream  bool
	}{
		{chunk.Section{Offset: chunk.Size + 5, Length: 100}, false},
		{chunk.Section{Offset: 2*chunk.Size - 5, Length: 10}, true},
		{chunk.Section{Length: b.Size(), OnDemand: true}, false},
	} {
		src := &noted{src: b, runs: make(map[int][]int)}
		r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 8 * chunk.Size, Run: chunk.Size}).OpenSection(t.Context(), c.section)
		if _, _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		if src.mu.Lock(); (src.alone == 0) != c.stream {
			t.Errorf("%+v: %d runs were asked for as if nothing more were read", c.section, src.alone)
		}
		src.mu.Unlock()
	}
}

// noted is a source that remembers, by their first, what chunks were asked for at once.
type noted struct {
	src chunk.Source

	mu    sync.Mutex
	runs  map[int][]int
	alone int
}

func (n *noted) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, n, ref)
}

func (n *noted) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	n.mu.Lock()
	for _, ref := range refs {
		n.runs[refs[0].Index()] = append(n.runs[refs[0].Index()], ref.Index())
	}
	if !chunk.IsInOrder(ctx) {
		n.alone++
	}
	n.mu.Unlock()
	return chunk.GetRun(ctx, n.src, refs, yield)
}
