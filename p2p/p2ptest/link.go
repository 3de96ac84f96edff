package p2ptest

import (
	"context"
	"sync"
	"time"
)

// Link lets so many bytes pass in a second, one piece after the other. nil lets all
// pass at once.
type Link struct {
	rate int64

	mu   sync.Mutex
	free time.Time // when the last piece has passed
}

// NewLink returns a link of a rate in bytes per second; of 0, one without bounds.
func NewLink(rate int64) *Link {
	if rate <= 0 {
		return nil
	}
	return &Link{rate: rate}
}

// Pass takes as long as n bytes take to pass after those that came before them.
func (l *Link) Pass(ctx context.Context, n int) error {
	return sleep(ctx, time.Until(l.reserve(n, time.Now())))
}

// reserve returns when n bytes that come at some time will have passed.
func (l *Link) reserve(n int, at time.Time) time.Time {
	if l == nil {
		return at
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(at) {
		l.free = at
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	return l.free
}
