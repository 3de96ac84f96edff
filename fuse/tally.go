package fuse

import (
	"math/bits"
	"sync"
)

// Contents are counted by pages, which is what the kernel reads, and remembered by
// windows of as many pages as a word has bits.
const (
	pageSize   = 4096
	windowSize = 64 * pageSize
)

// tally counts what is read, and what of that is new. The zero value is ready to use.
//
// It takes some 40 bytes for each 256 KiB that were read, and a bit for each file that is
// small and was read as a whole, or that is complete.
type tally struct {
	mu    sync.Mutex
	total int64 // bytes that were read
	new   int64 // bytes that were fetched, each once
	seen  map[window]uint64
	whole []uint64 // bit n: all of file n was fetched
}

// window is a part of a file.
type window struct{ file, index uint64 }

func (t *tally) sums() (read, fetched int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total, t.new
}

func (t *tally) read(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total += int64(n)
}

// fetched counts n > 0 bytes at off of a file of a size.
func (t *tally) fetched(file uint64, size, off, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isWhole(file) {
		return
	}
	if t.seen == nil {
		t.seen = make(map[window]uint64)
	}
	for at := off / windowSize * windowSize; at < off+n; at += windowSize {
		from, to := max(off-at, 0), min(off+n-at, windowSize)
		t.mark(window{file, uint64(at / windowSize)}, pages(from, to), min(size-at, windowSize))
	}
}

// complete counts all of a file of a size.
func (t *tally) complete(file uint64, size int64) {
	t.mu.Lock()
	whole := t.isWhole(file)
	t.mu.Unlock()
	if whole || size == 0 {
		return
	}
	t.fetched(file, size, 0, size)
	t.mu.Lock()
	defer t.mu.Unlock()
	for at := int64(0); at < size; at += windowSize {
		delete(t.seen, window{file, uint64(at / windowSize)})
	}
	t.setWhole(file)
}

// pages returns the pages of a window that the bytes from, to < windowSize are in.
func pages(from, to int64) uint64 {
	first, last := from/pageSize, (to-1)/pageSize
	return ^uint64(0) >> (63 - last) &^ (1<<first - 1)
}

// mark counts the pages that are new, of a window of so many bytes of a file.
func (t *tally) mark(w window, read uint64, size int64) {
	seen := t.seen[w]
	added, all := read&^seen, pages(0, size)
	t.new += int64(bits.OnesCount64(added)) * pageSize
	if last := all &^ (all >> 1); added&last != 0 { // which may be short
		t.new -= int64(bits.Len64(all))*pageSize - size
	}
	if seen |= read; seen == all && w.index == 0 && size < windowSize {
		delete(t.seen, w)
		t.setWhole(w.file)
		return
	}
	t.seen[w] = seen
}

func (t *tally) isWhole(file uint64) bool {
	return file/64 < uint64(len(t.whole)) && t.whole[file/64]>>(file%64)&1 != 0
}

func (t *tally) setWhole(file uint64) {
	if need := int(file/64) + 1; need > len(t.whole) {
		t.whole = append(t.whole, make([]uint64, need-len(t.whole))...)
	}
	t.whole[file/64] |= 1 << (file % 64)
}
