package p2p

import (
	"context"

	"golang.org/x/time/rate"

	"github.com/granary-oci/granary/p2p/wire"
)

// Limiter bounds a flow of bytes. nil does not.
type Limiter struct{ l *rate.Limiter }

// NewLimiter returns a limiter to so many bytes per second, and nil for 0, which
// bounds nothing. A chunk may always pass at once, after which the flow waits.
func NewLimiter(bytesPerSecond int64) *Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return &Limiter{rate.NewLimiter(rate.Limit(bytesPerSecond), wire.MaxBody)}
}

// Wait waits until n bytes may pass. The error is that of ctx, be it that ctx would
// end before.
func (l *Limiter) Wait(ctx context.Context, n int) error {
	for l != nil && n > 0 {
		part := min(n, wire.MaxBody)
		if err := l.l.WaitN(ctx, part); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return context.DeadlineExceeded
		}
		n -= part
	}
	return nil
}
