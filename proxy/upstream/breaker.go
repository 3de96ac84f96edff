package upstream

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// Limits of a circuit breaker.
const (
	breakAfter = 5 // failures in a row
	firstPause = time.Second
	longPause  = 30 * time.Second
	maxHosts   = 256 // that a registry redirects to and whose failures are counted
)

// breakers keep hosts that do not answer from being asked all the time: after
// breakAfter failures in a row a host is left alone for a while, then tried with
// one request, and left alone for twice as long if that fails too. The zero
// value is ready to use.
type breakers struct {
	mu    sync.Mutex
	hosts map[string]*breaker
}

type breaker struct {
	failures int       // in a row
	failed   time.Time // when the last of these was known
	until    time.Time // before it the host is not asked
	trying   bool      // one request is under way to see
	last     string    // what went wrong
}

// open is the error of a request that is not made.
func (b *breaker) open(host string) error {
	wait := max(time.Until(b.until).Round(100*time.Millisecond), 0)
	return fmt.Errorf("%s failed %d times in a row and is asked again in %v: %s", host, b.failures, wait, b.last)
}

// allow returns an error if host is not to be asked now. Each nil must be
// followed by a call of done.
func (bs *breakers) allow(host string) error {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.hosts[host]
	if b == nil || b.failures < breakAfter {
		return nil
	}
	if b.trying || time.Now().Before(b.until) {
		return b.open(host)
	}
	b.trying = true
	return nil
}

// failing reports whether the last request to host had no answer.
func (bs *breakers) failing(host string) bool {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.hosts[host]
	return b != nil && b.failures > 0
}

// done records how a request to host went that began at some time: failure is "" for an
// answer, and for a request that was given up says nothing. Requests that were under way
// together, and fail together, are one failure.
func (bs *breakers) done(host string, began time.Time, gaveUp bool, failure string, retryAfter time.Duration) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.hosts[host]
	switch {
	case gaveUp:
		if b != nil {
			b.trying = false
		}
		return
	case failure == "":
		delete(bs.hosts, host)
		return
	case b == nil:
		if bs.hosts == nil {
			bs.hosts = make(map[string]*breaker)
		}
		for other := range bs.hosts {
			if len(bs.hosts) < maxHosts {
				break
			}
			delete(bs.hosts, other)
		}
		b = new(breaker)
		bs.hosts[host] = b
	}
	b.trying, b.last = false, failure
	if began.Before(b.failed) {
		return
	}
	b.failures++
	b.failed = time.Now()
	if over := b.failures - breakAfter; over >= 0 {
		pause := min(firstPause<<min(over, 10), longPause)
		pause = max(pause/2+rand.N(pause), min(retryAfter, longPause))
		b.until = time.Now().Add(pause)
	}
}

// observe records an answer. A registry that is overloaded or not there behind
// its proxy counts as one that does not answer; a broken answer (500) may be of
// one thing among many and does not.
func (bs *breakers) observe(host string, began time.Time, resp *http.Response) {
	failure := ""
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		failure = resp.Status
	}
	bs.done(host, began, false, failure, retryAfter(resp.Header))
}
