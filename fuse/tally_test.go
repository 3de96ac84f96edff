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
		if size := sizes[w.file]; size < windowSize && int64(len(seen[w.file])) == (size+pageSize-1)/pageSize {
			t.Errorf("a small file that was read as a whole is remembered by window: %v", w)
		}
	}
}

func TestTallyOfACompleteFile(t *testing.T) {
	var got tally
	for _, size := range []int64{0, 10, windowSize, 5*windowSize + 3} {
		file, before := uint64(size+1), got.new
		if size > 0 {
			got.fetched(file, size, 0, 1)
		}
		got.complete(file, size)
		got.complete(file, size)
		if size > 0 {
			got.fetched(file, size, size-1, 1)
		}
		if _, fetched := got.sums(); fetched-before != size || len(got.seen) > 0 {
			t.Errorf("a file of %d bytes counts as %d; %d windows are remembered", size, fetched-before, len(got.seen))
		}
	}
}
