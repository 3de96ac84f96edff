package parent

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	// leastAsked is how many bytes are asked for at once in any case, and askedAhead how long what is asked for at
	// once takes to come.
	leastAsked = 2 * chunk.StripeSize
	askedAhead = 8 * time.Second
)

// queue has no more asked for at once than comes in a while: all that is asked for shares the line, and on a
// thin one what is wanted first would come hardly before what is wanted last. Who comes first has the first turn. Single chunks, as
// those that a program reads, wait for no longer runs; in large sites, whose stripes they are, for each other. The zero value is ready to use.
type queue struct {
	mu             sync.Mutex
	single, longer line
}

// line is runs that wait for each other.
type line struct {
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
	l := &q.longer
	if size <= chunk.Size {
		l = &q.single
	}
	t := &turn{size, make(chan struct{})}
	q.mu.Lock()
	l.waiting = append(l.waiting, t)
	l.next(rate())
	q.mu.Unlock()
	leave = func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if i := slices.Index(l.waiting, t); i >= 0 {
			l.waiting = slices.Delete(l.waiting, i, i+1)
		} else {
			l.under -= size
		}
		l.next(rate())
	}
	select {
	case <-t.begins:
		return leave, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// next lets those begin whose turn it is; the queue's mu is held.
func (l *line) next(rate int64) {
	most := max(leastAsked, rate*int64(askedAhead/time.Second))
	for len(l.waiting) > 0 && (l.under == 0 || l.under+l.waiting[0].size <= most) {
		l.under += l.waiting[0].size
		close(l.waiting[0].begins)
		l.waiting = l.waiting[1:]
	}
}
