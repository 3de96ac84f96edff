package fuse

import (
	"math/rand/v2"
	"testing"
)

// TestTally compares with what counts every byte.
func TestTally(t *testing.T) {
	sizes := map[uint64]int64{1: 10, 2: pageSize, 3: pageSize + 1, 70: windowSize, 71: windowSize - 1, 72: 5*windowSize + 3}
	random := rand.New(rand.NewPCG(1, 2))
	var got tally
	seen := make(map[uint64]map[int64]bool)
	want := int64(0)
	for range 2000 {
		for file, size := range sizes {
			off := random.Int64N(size) / pageSize * pageSize
			n := 1 + random.Int64N(min(size-off, 40*pageSize))
			if end := (off + n + pageSize - 1) / pageSize * pageSize; end < size {
				n = end - off // as the kernel reads
			} else {
				n = size - off
			}
			got.fetched(file, size, off, n)
			if seen[file] == nil {
				seen[file] = make(map[int64]bool)
			}
			for page := off; page < off+n; page += pageSize {
				if !seen[file][page] {
					seen[file][page] = true
					want += min(pageSize, size-page)
				}
			}
			if _, fetched := got.sums(); fetched != want {
				t.Fatalf("%d bytes at %d of a file of %d: %d in all, want %d", n, off, size, fetched, want)
			}
		}
	}
	for w := range got.seen {
		if sizes[w.file] < windowSize {
			t.Errorf("a small file that was read as a whole is remembered by window: %v", w)
		}
	}
}
