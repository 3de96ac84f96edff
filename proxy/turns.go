package proxy

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"sync"
	"time"
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

// order says what comes first of what is as urgent: what has the smaller one. Nothing is
// before all that has some.
type order struct { // guarded by turns.mu
	at      string
	hurried bool // a program waits for it now
}

type orderKey struct{}

func withOrder(ctx context.Context, o *order) context.Context {
	return context.WithValue(ctx, orderKey{}, o)
}

// turns decides what is fetched first: what a program waits for at once; what it is
// likely to read soon beside that, but not so much of it that the program waits for it;
// the rest only while nothing else is. Fetches are small, up to a stripe, and one that
// has begun is not stopped. The zero value is ready to use.
type turns struct {
	mu      sync.Mutex
	active  [background + 1]underWay
	waits   int       // programs that wait for what is under way
	demand  time.Time // when one last did
	pace    pace
	waiting []*turn // of those whose turn it is not, the next one first
}

// underWay are fetches that have begun.
type underWay struct {
	count int
	bytes int64
}

// turn is a fetch, from when it is asked for to its end.
type turn struct {
	urgency urgency
	order   *order
	bytes   int64
	begins  chan struct{} // closed when it does
	begun   time.Time     // then
}

const (
	// expectedAtOnce is how many bytes of what is expected are fetched at a time, or as many
	// as fill the line. While a program waits for something, or has lately, it is only the
	// latter. It may be more by one fetch, for there is always one.
	expectedAtOnce = 2 << 20
	lately         = 50 * time.Millisecond
	// expectedCount is how many fetches these may be, and restAtOnce how many of the rest.
	expectedCount = 64
	restAtOnce    = 4
)

// begin waits until it is the turn of a fetch of some bytes, of ctx's urgency. end is to
// be called when it is over.
func (t *turns) begin(ctx context.Context, bytes int64) (end func(), err error) {
	next := &turn{urgency: urgencyOf(ctx), order: orderOf(ctx), bytes: bytes, begins: make(chan struct{})}
	t.mu.Lock()
	at := sort.Search(len(t.waiting), func(i int) bool { return t.waiting[i].after(next) })
	if at > 0 && !next.now() || !t.enter(next) {
		t.waiting = slices.Insert(t.waiting, at, next)
	}
	t.mu.Unlock()
	select {
	case <-next.begins:
		return func() { t.leave(next) }, nil
	case <-ctx.Done():
		t.giveUp(next)
		return nil, ctx.Err()
	}
}

// now reports whether a program waits for the fetch. turns.mu is held.
func (t *turn) now() bool { return t.urgency == demanded || t.order.hurried }

// after reports whether t's turn comes after that of another, which has come later.
func (t *turn) after(o *turn) bool { return t.compare(o) > 0 }

func (t *turn) compare(o *turn) int {
	return cmp.Or(cmp.Compare(t.urgency, o.urgency), cmp.Compare(t.order.at, o.order.at))
}

// orderOf returns the order of what is fetched with ctx.
func orderOf(ctx context.Context) *order {
	if o, ok := ctx.Value(orderKey{}).(*order); ok {
		return o
	}
	return &order{}
}

// hurry says that a program waits for all that is fetched in an order.
func (t *turns) hurry(o *order) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o.hurried = true
	t.waiting = slices.DeleteFunc(t.waiting, func(w *turn) bool { return w.order == o && t.enter(w) })
}

// placeOf returns an order's place.
func (t *turns) placeOf(o *order) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return o.at
}

// sooner gives an order a smaller place, if it is smaller.
func (t *turns) sooner(o *order, at string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at < o.at {
		o.at = at
		slices.SortStableFunc(t.waiting, (*turn).compare)
	}
}

// enter lets a fetch begin, if it is its turn. t.mu is held.
func (t *turns) enter(next *turn) bool {
	switch ahead := t.active[expected]; {
	case next.now():
	case next.urgency == background:
		if t.active[demanded].count+t.waits+ahead.count > 0 || t.active[background].count == restAtOnce {
			return false
		}
	case ahead.count == expectedCount || ahead.count > 0 && ahead.bytes+next.bytes > t.limit():
		return false
	}
	t.active[next.urgency].count++
	t.active[next.urgency].bytes += next.bytes
	next.begun = time.Now()
	close(next.begins)
	return true
}

// limit returns how many bytes may be fetched at a time of what is expected. t.mu is held.
func (t *turns) limit() int64 {
	if t.active[demanded].count+t.waits > 0 || time.Since(t.demand) < lately {
		return t.pace.window()
	}
	return max(t.pace.window(), expectedAtOnce)
}

// arrived is told of bytes of a fetch, as they come.
func (t *turns) arrived(bytes int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pace.arrive(int64(bytes), time.Now())
}

// wait is told that somebody waits for a fetch of ctx's urgency that has begun, perhaps as
// a less urgent one. done is to be called when it is over.
func (t *turns) wait(ctx context.Context) (done func()) {
	if urgencyOf(ctx) != demanded {
		return func() {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waits++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.waits--
		t.demand = time.Now()
		t.next()
	}
}

// leave ends a fetch.
func (t *turns) leave(over *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over(over)
}

// over is told of a fetch that is not under way any more. t.mu is held.
func (t *turns) over(over *turn) {
	now := time.Now()
	if over.urgency == demanded {
		t.demand = now
	}
	t.pace.took(over.bytes, now.Sub(over.begun), now)
	t.active[over.urgency].count--
	t.active[over.urgency].bytes -= over.bytes
	t.next()
}

// giveUp takes a fetch back, which may have begun meanwhile.
func (t *turns) giveUp(next *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, next)
	if i < 0 {
		t.over(next)
		return
	}
	t.waiting = slices.Delete(t.waiting, i, i+1)
	t.next()
}

// next lets those begin whose turn it is, none before another. t.mu is held.
func (t *turns) next() {
	for len(t.waiting) > 0 && t.enter(t.waiting[0]) {
		t.waiting = t.waiting[1:]
	}
}
