package p2p

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// digestsFor is how long a member may take to make the digests of a few chunks.
const digestsFor = 10 * time.Second

// Digests asks members that have all of a blob of a registry for the digests of n of its
// chunks, from chunk first on, at most [wire.MaxCount], and returns who gave them. They are
// that member's word. The error is [chunk.ErrNotFound] if nobody has them.
func (c *Client) Digests(ctx context.Context, host string, blob digest.Digest, total int64, first, n int) (chunk.Digests, tracker.ID, error) {
	if c.cfg.Members.View().Alone() || c.claims.Of(host).Suspected(blob) {
		return nil, "", chunk.ErrNotFound
	}
	q := wire.Ask{Repository: wire.Repository{Host: host}, Question: wire.Digests, Reference: wire.PartOfMap(blob, total, first, n).Reference()}
	for _, id := range c.holders(ctx, host, blob) {
		_, body, err := c.askOne(ctx, id, q, digestsFor, silentHolder)
		if err == nil {
			var all chunk.Digests
			if all, err = chunk.ReadDigests(body, n); err == nil {
				return all, id, nil
			}
			err = &chunk.CorruptError{Source: "peer " + string(id), Ref: chunk.Ref{Blob: blob, Total: total, Size: total}, Reason: fmt.Sprintf("its map: %v", err)}
		}
		switch {
		case ctx.Err() != nil:
			return nil, "", ctx.Err()
		case errors.Is(err, chunk.ErrNotFound), errors.Is(err, context.DeadlineExceeded): // it may have the blob all the same, or has said that it is at it
		default:
			c.fault(id, err)
		}
	}
	return nil, "", chunk.ErrNotFound
}

// Mapped reports whether a member's map is believed, and if so records that a chunk is one of a
// blob because it has the digest, ref's, that the map gives.
func (c *Client) Mapped(host string, ref chunk.Ref, giver tracker.ID) bool {
	claims := c.claims.Of(host)
	if claims.Suspected(ref.Blob) || !c.peers.trusted(giver) {
		return false
	}
	claims.Mapped(ref, giver)
	return true
}
