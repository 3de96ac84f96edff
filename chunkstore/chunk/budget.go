package chunk

import (
	"context"
	"math"
	"sync"
)

// Budget bounds the memory that all readers of a process hold together, counted
// in bytes. Waiters are served in the order of their arrival. A nil Budget has
// no bound.
type Budget struct {
	total int64

	mu      sync.Mutex
	free    int64
	waiters []*waiter // guarded by mu, oldest first
}

type waiter struct {
	n     int64
	ready chan struct{}
}

// NewBudget returns a budget of n bytes, at least one chunk.
func NewBudget(n int64) *Budget { return &Budget{total: max(n, Size), free: max(n, Size)} }

// chunks returns how many chunks there is memory for in all, at least 1.
func (b *Budget) chunks() int {
	if b == nil {
		return math.MaxInt
	}
	return int(b.total / Size)
}

// acquire takes n bytes, at most the total, and waits until they are free.
func (b *Budget) acquire(ctx context.Context, n int64) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	w := &waiter{n, make(chan struct{})}
	b.waiters = append(b.waiters, w)
	b.wake()
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, other := range b.waiters {
		if other == w {
			b.waiters = append(b.waiters[:i], b.waiters[i+1:]...)
			b.wake()
			return ctx.Err()
		}
	}
	b.free += n // the bytes came at the same moment as the end
	b.wake()
	return ctx.Err()
}

// tryAcquire takes n bytes for a reader that holds others and can do without, if
// nobody is waiting for them. A quarter of the budget, and as much as the reader
// holds, is left to others: one whose client stops reading keeps what it has.
func (b *Budget) tryAcquire(n, held int64) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiters) > 0 || b.free-n < max(b.total/4, held+n) {
		return false
	}
	b.free -= n
	return true
}

func (b *Budget) release(n int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	b.wake()
}

// wake hands free bytes to waiters in order; b.mu is held.
func (b *Budget) wake() {
	for len(b.waiters) > 0 && b.waiters[0].n <= b.free {
		w := b.waiters[0]
		b.waiters = b.waiters[1:]
		b.free -= w.n
		close(w.ready)
	}
}
