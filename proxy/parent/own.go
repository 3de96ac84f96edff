package parent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Origin returns what the parent is called as a source of bytes.
func (r *Repository) Origin() string { return r.parent.origin }

// Pace returns how many bytes per second come from the parent, by what has come lately and what its
// settings allow, 0 while that is not known.
func (r *Repository) Pace() int64 {
	rate, limit := r.parent.pace.rate(), r.parent.limit()
	if rate == 0 || limit > 0 && limit < rate {
		return limit
	}
	return rate
}

// Own asks for what the parent itself has to say of a blob, the whole of which is of, at a path below the repository that
// ends with its digest, and returns the body, of at most most bytes. That it is being made, a [*upstream.StatusError] of 503, is
// no failure of the parent, and an answer of another type, or one that says that it is larger, is none. A body that goes on is a [*chunk.CorruptError], for
// which the parent is at fault.
func (r *Repository) Own(ctx context.Context, of chunk.Ref, path string, query url.Values, mediaType string, most int64) ([]byte, error) {
	if err := r.parent.usable(); err != nil {
		return nil, err
	}
	if r.parents.given.doubted(blob{r.name.Host, of.Blob}) {
		return nil, r.doubted(of.Blob)
	}
	p, err := r.own(ctx, path+string(of.Blob), query, mediaType, most)
	if err == nil && int64(len(p)) > most {
		err = &chunk.CorruptError{Ref: of, Reason: fmt.Sprintf("%s has more than %d bytes", path, most)}
	}
	var said *upstream.StatusError
	if errors.As(err, &said) && said.Code == http.StatusServiceUnavailable {
		return nil, err
	}
	return p, r.heed(err)
}

func (r *Repository) own(ctx context.Context, path string, query url.Values, mediaType string, most int64) ([]byte, error) {
	resp, err := r.up.Get(upstream.Once(ctx), path, query, http.Header{"Accept": {mediaType}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if is := resp.Header.Get("Content-Type"); is != mediaType {
		return nil, fmt.Errorf("%s: %s is of type %q: %w", r.parent.origin, path, is, chunk.ErrNotFound)
	}
	if resp.ContentLength > most {
		return nil, fmt.Errorf("%s: %s has %d bytes, more than it is worth: %w", r.parent.origin, path, resp.ContentLength, chunk.ErrNotFound)
	}
	p, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.parent.origin, err)
	}
	return p, nil
}

// Blame has the parent be at fault for what it gave of a blob.
func (r *Repository) Blame(of chunk.Ref, reason string) {
	r.parents.fault(r.parent, &chunk.CorruptError{Source: r.parent.origin, Ref: of, Reason: reason})
}
