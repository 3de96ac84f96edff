package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Limits bound how many requests are answered at once. Zeros are no limit.
type Limits struct {
	Total     int // of all clients
	PerClient int // of one address, or one network of IPv6 (/64)
	// Queue is how many more may wait for their turn, for as long as Wait.
	Queue int
	Wait  time.Duration
}

// Limit returns h within limits. What goes beyond is answered 503 with
// Retry-After: clients that are told 429 come again at once.
func Limit(h http.Handler, limits Limits) http.Handler {
	if limits.Total <= 0 {
		return h
	}
	if limits.PerClient <= 0 {
		limits.PerClient = limits.Total
	}
	return &limiter{next: h, limits: limits, places: make(chan struct{}, limits.Total), clients: make(map[netip.Addr]*client)}
}

type limiter struct {
	next   http.Handler
	limits Limits
	places chan struct{}

	mu      sync.Mutex
	waiting int
	clients map[netip.Addr]*client // those with requests
}

type client struct {
	requests int           // answered or waiting; guarded by limiter.mu
	places   chan struct{} // one for each that may be answered at once
}

func (l *limiter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	leave, ok := l.enter(r.Context(), clientOf(r))
	if !ok {
		w.Header().Set("Retry-After", "1")
		writeAnswer(w, answer{http.StatusServiceUnavailable, "UNAVAILABLE"}, "this node is answering as many requests as it can")
		return
	}
	defer leave()
	l.next.ServeHTTP(w, r)
}

// clientOf returns what a client is counted by.
func clientOf(r *http.Request) netip.Addr {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	a, _ := netip.ParseAddr(host)
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// enter takes a place of the client's, and then one of all. In this order a
// client that waits for itself keeps nobody else from a place.
func (l *limiter) enter(ctx context.Context, a netip.Addr) (leave func(), ok bool) {
	c := l.join(a)
	ctx, cancel := context.WithTimeout(ctx, l.limits.Wait)
	defer cancel()
	if !l.acquire(ctx, c.places) {
		l.quit(a, c)
		return nil, false
	}
	if !l.acquire(ctx, l.places) {
		<-c.places
		l.quit(a, c)
		return nil, false
	}
	return func() { <-l.places; <-c.places; l.quit(a, c) }, true
}

// acquire takes a place, at once or after a while in the queue.
func (l *limiter) acquire(ctx context.Context, places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
	}
	if !l.queue(1) {
		return false
	}
	defer l.queue(-1)
	select {
	case places <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// queue takes a place in the queue, or gives it back.
func (l *limiter) queue(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n > 0 && l.waiting >= l.limits.Queue {
		return false
	}
	l.waiting += n
	return true
}

func (l *limiter) join(a netip.Addr) *client {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clients[a]
	if c == nil {
		c = &client{places: make(chan struct{}, l.limits.PerClient)}
		l.clients[a] = c
	}
	c.requests++
	return c
}

func (l *limiter) quit(a netip.Addr, c *client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.requests--; c.requests == 0 {
		delete(l.clients, a)
	}
}
