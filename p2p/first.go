package p2p

import (
	"context"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// First returns the blobs of a repository as the owner of their first stripe has
// them: of a registry that sends whole blobs only, one member reads for all. Where
// that is this node, or cannot be asked, the error is [chunk.ErrNotFound].
func (c *Client) First(repo wire.Repository) chunk.Source {
	repo.First = true
	return &firstOwner{c, repo}
}

type firstOwner struct {
	client *Client
	repo   wire.Repository
}

// Get implements [chunk.Source].
func (s *firstOwner) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = s.GetRun(ctx, []chunk.Ref{ref}, func(_ chunk.Ref, q []byte) error {
		p = q
		return nil
	})
	return p, err
}

// GetRun implements [chunk.Runner].
func (s *firstOwner) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	c := s.client
	switch {
	case len(refs) == 0:
		return nil
	case c.claims.Of(s.repo.Host).Suspected(refs[0].Blob):
		return chunk.ErrNotFound
	}
	yield = c.unlessRefuted(s.repo.Host, yield)
	for _, p := range c.cfg.Members.View().Owners(tracker.StripeKey(refs[0].Blob, 0), ownersAsked) {
		if p.ID == c.self() {
			break
		}
		if !c.peers.usable(p.ID) {
			continue
		}
		return c.borrow(ctx, p.ID, request(s.repo, wire.ToOwnerAgain, refs), refs, c.cfg.Timing.Budget, yield)
	}
	return chunk.ErrNotFound
}
