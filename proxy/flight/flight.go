// Package flight makes callers that want the same share the work for it.
package flight

import (
	"context"
	"sync"
	"time"
)

// Group makes callers with the same key share one answer. The work for it belongs to
// nobody: it goes on while anyone waits for it, for as long as the first caller's
// limit says, and is cancelled when the last one has left. The zero value is ready
// to use.
type Group struct {
	mu  sync.Mutex
	all map[string]*work // what has no answer yet
}

// work is guarded by Group.mu, but for what is written before done is closed.
type work struct {
	waiters int
	cancel  context.CancelFunc
	done    chan struct{}
	answer  any
	err     error
}

// Do returns what answer returns, for this caller or another one with the same key.
// Its context keeps the values of the first caller's, but not its end.
func (g *Group) Do(ctx context.Context, key string, limit time.Duration, answer func(context.Context) (any, error)) (any, error) {
	q := g.join(ctx, key, limit, answer)
	select {
	case <-q.done:
		return q.answer, q.err
	case <-ctx.Done():
		g.leave(key, q)
		return nil, ctx.Err()
	}
}

// Wait waits for the work for a key, if there is any.
func (g *Group) Wait(ctx context.Context, key string) {
	g.mu.Lock()
	q := g.all[key]
	if q != nil {
		q.waiters++
	}
	g.mu.Unlock()
	if q == nil {
		return
	}
	select {
	case <-q.done:
	case <-ctx.Done():
		g.leave(key, q)
	}
}

func (g *Group) join(ctx context.Context, key string, limit time.Duration, answer func(context.Context) (any, error)) *work {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q := g.all[key]; q != nil {
		q.waiters++
		return q
	}
	q := &work{waiters: 1, done: make(chan struct{})}
	ctx, q.cancel = context.WithTimeout(context.WithoutCancel(ctx), limit)
	if g.all == nil {
		g.all = make(map[string]*work)
	}
	g.all[key] = q
	go func() {
		defer q.cancel()
		v, err := answer(ctx)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.remove(key, q)
		q.answer, q.err = v, err
		close(q.done)
	}()
	return q
}

// leave takes a caller off. Work that nobody waits for is taken out in the same
// breath as it is cancelled, for nobody to join it any more.
func (g *Group) leave(key string, q *work) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q.waiters--; q.waiters == 0 {
		g.remove(key, q)
		q.cancel()
	}
}

// remove forgets a work; g.mu is held.
func (g *Group) remove(key string, q *work) {
	if g.all[key] == q {
		delete(g.all, key)
	}
}
