package proxy

import (
	"bytes"
	"context"
	"errors"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// inOne gets blobs from an upstream. Of a registry that sends no parts of blobs all
// members get them from the one that reads the whole: the owner of the first stripe.
type inOne struct {
	far   chunk.Source
	peers Peers
	in    In
	first bool // this node is it, at least for who asks
}

func (s *inOne) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = s.GetRun(ctx, []chunk.Ref{ref}, func(got chunk.Ref, q []byte) error {
		if got.Offset == ref.Offset {
			p = q
		}
		return nil
	})
	return p, err
}

func (s *inOne) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if s.first || len(refs) == 0 || refs[0].Total <= s.peers.StripeSize(refs[0].Total) || s.peers.Alone() {
		return chunk.GetRun(ctx, s.far, refs, yield)
	}
	given := 0
	count := func(ref chunk.Ref, p []byte) error {
		if given < len(refs) && ref.Offset == refs[given].Offset {
			given++
		}
		return yield(ref, p)
	}
	err := chunk.GetRun(upstream.RangesOnly(ctx), s.far, refs, count)
	if !errors.Is(err, upstream.ErrNoRanges) {
		return err
	}
	err = chunk.GetRun(ctx, s.peers.First(s.in), refs[given:], count)
	if err == nil || ctx.Err() != nil || given == len(refs) {
		return err
	}
	return chunk.GetRun(ctx, s.far, refs[given:], yield)
}

// strict returns the chunks of a blob that this node has fetched itself, and fetches
// the others. What it fetches is kept, but takes the place of nothing that is stored.
func (p *Repository) strict(near ours, far chunk.Source) chunk.Source {
	r := p.registry
	return chunk.Cache(fetchedOnly{near, r.cfg.Peers, p.Host}, far, r.flights.of(flightKey{p.Host, apartFromStore}), r.cfg.Report)
}

// fetchedOnly is the store as far as it holds what this node has fetched itself.
type fetchedOnly struct {
	ours
	peers Peers
	host  string
}

func (s fetchedOnly) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if !ref.Whole() && !s.peers.Own(s.host, ref) {
		return nil, chunk.ErrNotFound
	}
	return s.ours.Get(ctx, ref)
}

func (s fetchedOnly) Put(ctx context.Context, ref chunk.Ref, p []byte) error {
	from := chunk.ParentOf(chunk.OriginOf(ctx))
	other, err := s.ours.Get(ctx, ref)
	if err == nil && bytes.Equal(other, p) {
		s.peers.Fetched(s.host, ref, p, from) // as this node now knows itself
	}
	if !errors.Is(err, chunk.ErrNotFound) {
		return err // somebody else's is there
	}
	s.peers.Fetched(s.host, ref, p, from)
	return s.ours.Put(ctx, ref, p)
}

// recorded tells the other members' keeper of claims what the upstream has sent, or a parent.
type recorded struct {
	src   chunk.Source
	peers Peers
	host  string
}

func (s recorded) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, s, ref)
}

func (s recorded) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	asked, from := chunk.WithOrigin(ctx)
	return chunk.GetRun(asked, s.src, refs, func(ref chunk.Ref, p []byte) error {
		chunk.SetOrigin(ctx, from())
		s.peers.Fetched(s.host, ref, p, chunk.ParentOf(from()))
		return yield(ref, p)
	})
}
