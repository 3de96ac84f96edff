package proxy

import (
	"context"
	"sync"
)

// urgency is how soon somebody needs what is fetched.
type urgency int

const (
	demanded   urgency = iota // a program waits for it
	expected                  // a program is likely to read it soon
	background                // nobody may ever read it
)

type urgencyKey struct{}

func withUrgency(ctx context.Context, u urgency) context.Context {
	return context.WithValue(ctx, urgencyKey{}, u)
}

func urgencyOf(ctx context.Context) urgency {
	u, _ := ctx.Value(urgencyKey{}).(urgency)
	return u
}

// turns decides what is fetched first: what a program waits for at once; what it is
// likely to read soon beside that, but not so much of it that the program waits for it;
// the rest only while nothing else is. Fetches are small, up to a stripe, and one that
// has begun is not stopped. The zero value is ready to use.
type turns struct {
	mu      sync.Mutex
	active  [background + 1]int
	waiting []chan struct{} // of those whose turn it is not
}

// How many fetches there may be at a time, of what is expected and of the rest: while a
// program waits for something, and otherwise.
const (
	expectedBeside = 1
	expectedAtOnce = 3
	restAtOnce     = 4
)

// begin waits until it is the turn of a fetch of ctx's urgency. end is to be called
// when it is over.
func (t *turns) begin(ctx context.Context) (end func(), err error) {
	u := urgencyOf(ctx)
	for {
		wait, ok := t.enter(u)
		if ok {
			return func() { t.leave(u) }, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// enter reports whether a fetch may begin, and if not, what to wait for before asking
// again.
func (t *turns) enter(u urgency) (wait <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch demand := t.active[demanded]; {
	case u == demanded,
		u == expected && demand == 0 && t.active[expected] < expectedAtOnce,
		u == expected && t.active[expected] < expectedBeside,
		u == background && demand+t.active[expected] == 0 && t.active[background] < restAtOnce:
		t.active[u]++
		return nil, true
	}
	c := make(chan struct{})
	t.waiting = append(t.waiting, c)
	return c, false
}

func (t *turns) leave(u urgency) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.active[u]--
	for _, c := range t.waiting {
		close(c)
	}
	t.waiting = nil
}
