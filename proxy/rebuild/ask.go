package rebuild

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc/cdc"
)

// mapPatience is how long a map that is being made is waited for.
const mapPatience = 30 * time.Second

// Map asks givers for the content map of a layer, as it is packed. It is their word. came is told of bytes that came from one of an origin.
func (e *Edge) Map(ctx context.Context, layer chunk.Ref, givers []Giver, came func(origin string, n int64)) (p []byte, err error) {
	err = fmt.Errorf("layer %s: nobody is there who could say what it has: %w", layer.Blob, chunk.ErrNotFound)
	for _, g := range givers {
		p, err = askMade(ctx, mapPatience, func() ([]byte, error) {
			p, err := g.Own(ctx, layer, ContentsPath, nil, MapType, min(cdc.MaxPacked, layer.Total))
			e.noteRead(0, int64(len(p)))
			came(g.Origin(), int64(len(p)))
			return p, err
		})
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return p, err
}

// askMade asks for something until it is not being made any more, with naps between.
func askMade(ctx context.Context, patience time.Duration, ask func() ([]byte, error)) ([]byte, error) {
	for until := time.Now().Add(patience); ; {
		p, err := ask()
		wait, making := comeAgain(err)
		if !making || time.Now().Add(wait).After(until) {
			return p, err
		}
		if err := sleep(ctx, min(max(wait, shortestNap), longestNap)); err != nil {
			return nil, err
		}
	}
}

// withReason adds to a giver's refusal what it says of why, for people: up to 200 characters that can be printed.
func withReason(err error) error {
	var said *upstream.StatusError
	if !errors.As(err, &said) || said.Code != http.StatusNotFound || said.Message() == "" {
		return err
	}
	return fmt.Errorf("%w: it says %.200q", err, said.Message())
}

// comeAgain returns after how long a giver wants to be asked again for what it is making.
func comeAgain(err error) (after time.Duration, making bool) {
	var said *upstream.StatusError
	if !errors.As(err, &said) || said.Code != http.StatusServiceUnavailable {
		return 0, false
	}
	return said.RetryAfter(), true
}
