package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

const (
	maxAttempts  = 3 // of a question
	firstBackoff = 100 * time.Millisecond
	maxPatience  = 5 * time.Second // after which no attempt begins, and with a server that says when to come again
)

type onceKey struct{}

// Once returns a context in which a question is asked once, and in which 503 is an answer, about what was asked for,
// and not the failure of a host: for who waits for something to be made.
func Once(ctx context.Context) context.Context { return context.WithValue(ctx, onceKey{}, true) }

func once(ctx context.Context) bool { return ctx.Value(onceKey{}) != nil }

// patiently makes a question again that went wrong in a way which may pass: no
// answer came, or one that says so. Between attempts it waits, with jitter, or
// as long as the server asks for if that is not too long.
func patiently[T any](ctx context.Context, question func() (T, error)) (T, error) {
	began := time.Now()
	for attempt := 1; ; attempt++ {
		v, err := question()
		if err == nil || attempt == maxAttempts || once(ctx) || time.Since(began) > maxPatience || !mayPass(err) || !pause(ctx, attempt, err) {
			return v, err
		}
	}
}

// mayPass reports whether the same request may soon have another answer. A
// registry that counts requests is asked again only if it says when.
func mayPass(err error) bool {
	var broken *brokenCircuitError
	var status *StatusError
	switch {
	case errors.As(err, &broken):
		return false
	case errors.As(err, &status) && status.Code == http.StatusTooManyRequests:
		return retryAfter(status.Header) > 0
	}
	return Unreachable(err)
}

// pause waits before the next attempt. It is false when that is not to be made.
func pause(ctx context.Context, attempt int, err error) bool {
	wait := firstBackoff << (attempt - 1)
	wait = wait/2 + rand.N(wait)
	var status *StatusError
	if errors.As(err, &status) {
		asked := retryAfter(status.Header)
		if asked > maxPatience {
			return false
		}
		wait = max(wait, asked)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// retryAfter returns how long a server asks to be left alone, 0 if it does not
// (RFC 9110, section 10.2.3).
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}
