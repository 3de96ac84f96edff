package proxy

import (
	"context"
	"sync"
	"time"
)

// askFor bounds a question to an upstream.
const askFor = 30 * time.Second

// questions make callers with the same question share one answer. A question
// belongs to nobody: it goes on while anyone waits for it, for askFor at most,
// and is cancelled when the last one has left. The zero value is ready to use.
type questions struct {
	mu  sync.Mutex
	all map[string]*question // those without an answer yet
}

// question is guarded by questions.mu, but for what is written before done is
// closed.
type question struct {
	waiters int
	cancel  context.CancelFunc
	done    chan struct{}
	answer  any
	err     error
}

// ask returns what answer returns, for this caller or another one with the same
// key. Its context keeps the values of the first caller's, but not its end.
func (qs *questions) ask(ctx context.Context, key string, answer func(context.Context) (any, error)) (any, error) {
	q := qs.join(ctx, key, answer)
	select {
	case <-q.done:
		return q.answer, q.err
	case <-ctx.Done():
		qs.leave(key, q)
		return nil, ctx.Err()
	}
}

func (qs *questions) join(ctx context.Context, key string, answer func(context.Context) (any, error)) *question {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q := qs.all[key]; q != nil {
		q.waiters++
		return q
	}
	q := &question{waiters: 1, done: make(chan struct{})}
	ctx, q.cancel = context.WithTimeout(context.WithoutCancel(ctx), askFor)
	if qs.all == nil {
		qs.all = make(map[string]*question)
	}
	qs.all[key] = q
	go func() {
		defer q.cancel()
		v, err := answer(ctx)
		qs.mu.Lock()
		defer qs.mu.Unlock()
		qs.remove(key, q)
		q.answer, q.err = v, err
		close(q.done)
	}()
	return q
}

// leave takes a caller off a question. One that nobody waits for is taken out in
// the same breath as it is cancelled, for nobody to join it any more.
func (qs *questions) leave(key string, q *question) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q.waiters--; q.waiters == 0 {
		qs.remove(key, q)
		q.cancel()
	}
}

// remove forgets a question; qs.mu is held.
func (qs *questions) remove(key string, q *question) {
	if qs.all[key] == q {
		delete(qs.all, key)
	}
}
