package upstream

import "context"

// viaKey is where a context has the proxies that its request has come through.
type viaKey struct{}

// WithVia returns a context whose requests tell the proxies that a request has
// come through so far, the value of its Via field (RFC 9110, section 7.6.3).
func WithVia(ctx context.Context, via string) context.Context {
	if via == "" {
		return ctx
	}
	return context.WithValue(ctx, viaKey{}, via)
}

// via returns the value of Via for a request under ctx.
func (c Config) via(ctx context.Context) string {
	before, _ := ctx.Value(viaKey{}).(string)
	switch {
	case c.Pseudonym == "":
		return before
	case before == "":
		return "1.1 " + c.Pseudonym
	}
	return before + ", 1.1 " + c.Pseudonym
}
