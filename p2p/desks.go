package p2p

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// desk is what kind of work a request for chunks is. Each kind waits for kinds
// after it alone, at other members: an owner asks whoever reads the whole of a blob,
// and holders; those ask holders; and holders ask nobody. Relaying waits for relaying at others: for
// that nobody waits, but is refused. With a bound for all kinds
// together, two members whose owners have taken every place would wait for each
// other's holders for ever.
type desk int

const (
	owning desk = iota
	reading
	holding
	relaying
	kinds
)

// desks bound how much work of each kind is done at a time.
type desks [kinds]*semaphore.Weighted

func newDesks(places int64) (d desks) {
	for i := range d {
		d[i] = semaphore.NewWeighted(places)
	}
	return d
}

// work takes a place for work of a kind: first one of the member's own, so that it
// does not wait in the way of others.
func (l *served) work(ctx context.Context, kind desk) (release func(), err error) {
	own, all := l.guest.working[kind], l.server.working[kind]
	if err := own.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	if err := all.Acquire(ctx, 1); err != nil {
		own.Release(1)
		return nil, err
	}
	return func() { all.Release(1); own.Release(1) }, nil
}
