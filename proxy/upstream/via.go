package upstream

import (
	"context"

	"github.com/granary-oci/granary/proxy/trace"
)

// via returns the value of Via for a request under ctx.
func (c Config) via(ctx context.Context) string {
	before := trace.Via(ctx)
	switch {
	case c.Pseudonym == "":
		return before
	case before == "":
		return "1.1 " + c.Pseudonym
	}
	return before + ", 1.1 " + c.Pseudonym
}
