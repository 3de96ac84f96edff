package parent

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	// freely is the size, in bytes, of the largest run that waits for no other.
	freely = chunk.Size
	// leastAsked is how many bytes are asked for at once in any case, and askedAhead how long what is asked for at
	// once takes to come.
	leastAsked = 2 * chunk.StripeSize
	askedAhead = 8 * time.Second
)

// queue has no more asked for at once than comes in a while: all that is asked for shares the line, and on a
// thin one what is wanted first would come hardly before what is wanted last. Who comes first has the first turn.
// The zero value is ready to use.
type queue struct {
	mu      sync.Mutex
	under   int64 // bytes that are asked for
	waiting []*turn
}

type turn struct {
	size   int64
	begins chan struct{}
}

// enter waits until so many bytes may be asked for, of a parent that gives rate bytes per second, 0 if that is not
// known. leave is to be called when they have come, or will not.
func (q *queue) enter(ctx context.Context, size int64, rate func() int64) (leave func(), err error) {
	if size <= freely {
		return func() {}, nil
	}
	t := &turn{size, make(chan struct{})}
	q.mu.Lock()
	q.waiting = append(q.waiting, t)
	q.next(rate())
	q.mu.Unlock()
	leave = func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if i := slices.Index(q.waiting, t); i >= 0 {
			q.waiting = slices.Delete(q.waiting, i, i+1)
		} else {
			q.under -= size
		}
		q.next(rate())
	}
	select {
	case <-t.begins:
		return leave, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// next lets those begin whose turn it is; q.mu is held.
func (q *queue) next(rate int64) {
	most := max(leastAsked, rate*int64(askedAhead/time.Second))
	for len(q.waiting) > 0 && (q.under == 0 || q.under+q.waiting[0].size <= most) {
		q.under += q.waiting[0].size
		close(q.waiting[0].begins)
		q.waiting = q.waiting[1:]
	}
}
