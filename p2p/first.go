package p2p

import (
	"context"
	"time"

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
	if len(refs) == 0 {
		return nil
	}
	for _, p := range c.cfg.Members.View().Owners(tracker.StripeKey(refs[0].Blob, 0), ownersAsked) {
		if p.ID == c.self() {
			break
		}
		if !c.peers.usable(p.ID) {
			continue
		}
		return s.from(ctx, p.ID, refs, yield)
	}
	return chunk.ErrNotFound
}

// from asks the owner, for as long as it is not silent.
func (s *firstOwner) from(ctx context.Context, id tracker.ID, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(s.client.cfg.Timing.Budget, func() { cancel(errSilent) })
	defer silence.Stop()
	heard := func(int64) { silence.Reset(s.client.cfg.Timing.Budget) }
	e := &errand{placed: &placed{client: s.client, repo: s.repo}}
	err := s.client.get(ctx, id, e.request(wire.ToOwnerAgain, refs), refs, heard, func(ref chunk.Ref, p []byte) error {
		heard(0)
		chunk.SetOrigin(ctx, peerName)
		return yield(ref, p)
	})
	switch {
	case err == nil:
		return nil
	case context.Cause(ctx) == errSilent:
		s.client.peers.fail(id)
	case corrupt(err):
		s.client.blame(id, err)
	}
	return err
}
