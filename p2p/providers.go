package p2p

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const (
	providersFor  = time.Second // that what keepers have said is taken to be so
	maxKnown      = 4096        // blobs whose providers are remembered
	askKeepersFor = 500 * time.Millisecond
	silentHolder  = 2 * time.Second // before the next one is asked
	maxHolders    = 3               // that are asked for the same
	maxNeighbours = 2               // the same
	askNeighbours = 10 * time.Second
)

// known is what keepers have said of the providers of a blob, or are being asked.
type known struct {
	said  chan struct{} // closed when the rest is there; from then on it is guarded by Client.mu
	ids   []tracker.ID
	until time.Time
}

// Held returns the blobs of a registry that other members hold. Who has all of a blob
// has told the keepers of its digest, who are asked; and when members come and go,
// what this node is asked for as an owner may be where it was placed before.
func (c *Client) Held(host string) chunk.Source { return &held{c, host} }

type held struct {
	client *Client
	host   string
}

// Get implements [chunk.Source].
func (s *held) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = s.GetRun(ctx, []chunk.Ref{ref}, func(_ chunk.Ref, q []byte) error {
		p = q
		return nil
	})
	return p, err
}

// GetRun implements [chunk.Runner].
func (s *held) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	c := s.client
	if len(refs) == 0 || c.cfg.Members.View().Alone() || c.claims.Of(s.host).Suspected(refs[0].Blob) {
		return chunk.ErrNotFound
	}
	blob := refs[0].Blob
	yield = c.unlessRefuted(s.host, yield)
	for _, id := range c.holders(ctx, s.host, blob) {
		left, over, err := s.from(ctx, id, refs, silentHolder, yield)
		if over || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, chunk.ErrNotFound) {
			c.strike(blob, id)
		}
		refs = left
	}
	return s.neighbours(ctx, refs, yield)
}

// holders returns members that have all of a blob, as many as are asked for the same: the
// nearest, and in no order those that are as near.
func (c *Client) holders(ctx context.Context, host string, blob digest.Digest) []tracker.ID {
	all := slices.DeleteFunc(c.providersOf(ctx, host, blob), func(id tracker.ID) bool { return !c.peers.usable(id) })
	random := c.chance()
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	view := c.cfg.Members.View()
	slices.SortStableFunc(all, func(a, b tracker.ID) int { return cmp.Compare(view.Distance(a), view.Distance(b)) })
	return all[:min(len(all), maxHolders)]
}

// neighbours gets chunks from members that may have owned them before, be it in stripes of another size.
func (s *held) neighbours(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	asking, cancel := context.WithTimeout(ctx, askNeighbours)
	defer cancel()
	total, view := refs[0].Total, s.client.cfg.Members.View()
	size, other := s.client.StripeSize(total), decide.OtherStripeSize(total, view.Near())
	left, over, err := s.near(asking, size, refs, yield)
	if over || ctx.Err() != nil || size == other {
		return err
	}
	for _, stripe := range split(left, other) {
		if left, over, err := s.near(asking, other, stripe, yield); len(left) > 0 || over && err != nil {
			return err
		}
	}
	return nil
}

// near asks the members that chunks of one stripe are placed at now, but this one, where stripes have a size. It returns what [held.from]
// does, and [chunk.ErrNotFound] for what is left.
func (s *held) near(ctx context.Context, size int64, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) (left []chunk.Ref, over bool, err error) {
	c := s.client
	key := tracker.StripeKey(refs[0].Blob, int(refs[0].Offset/size))
	for _, p := range c.cfg.Members.View().Neighbours(key, maxNeighbours) {
		if !c.peers.sound(p.ID) {
			continue // it would be a guess to ask it at all
		}
		left, over, err := s.from(ctx, p.ID, refs, c.cfg.Timing.HedgeMax, yield)
		if over {
			return left, true, err
		}
		refs = left
	}
	return refs, false, chunk.ErrNotFound
}

// from asks one holder. It returns what is left to be got from others, unless it is
// over: all has been given, or yield has had enough.
func (s *held) from(ctx context.Context, id tracker.ID, refs []chunk.Ref, silence time.Duration, yield func(chunk.Ref, []byte) error) (left []chunk.Ref, over bool, err error) {
	var stop error
	q := request(wire.Repository{Host: s.host}, wire.ToHolder, refs)
	left = refs
	err = s.client.borrow(ctx, id, q, refs, silence, func(ref chunk.Ref, p []byte) error {
		left = left[1:]
		stop = yield(ref, p)
		return stop
	})
	switch {
	case stop != nil:
		return nil, true, stop
	case len(left) == 0:
		return nil, true, nil
	}
	return left, false, err
}

// strike forgets that a member has a blob.
func (c *Client) strike(d digest.Digest, id tracker.ID) {
	if c.cfg.Providers != nil {
		c.cfg.Providers.Withdraw(d, id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.providers[d]; k != nil {
		k.ids = slices.DeleteFunc(k.ids, func(other tracker.ID) bool { return other == id })
	}
}

// providersOf returns the members that are known to have all of a blob. Who asks at
// the same time, or soon after, shares the answer.
func (c *Client) providersOf(ctx context.Context, host string, d digest.Digest) []tracker.ID {
	c.mu.Lock()
	k := c.providers[d]
	if k == nil || !k.until.IsZero() && !c.peers.now().Before(k.until) {
		k = &known{said: make(chan struct{})}
		c.remember(d, k)
		go c.learnProviders(context.WithoutCancel(ctx), host, d, k)
	}
	c.mu.Unlock()
	select {
	case <-k.said:
	case <-ctx.Done():
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(k.ids)
}

// Provided reports whether another member is known to have all of a blob.
func (c *Client) Provided(ctx context.Context, host string, d digest.Digest) bool {
	return slices.ContainsFunc(c.providersOf(ctx, host, d), c.peers.usable)
}

// learnProviders asks the keepers. An answer of nobody is an answer too, even where a
// keeper was silent: whoever asks next would wait for the same one.
func (c *Client) learnProviders(ctx context.Context, host string, d digest.Digest, k *known) {
	ids := c.askKeepers(ctx, host, d)
	c.mu.Lock()
	defer c.mu.Unlock()
	k.ids, k.until = ids, c.peers.now().Add(providersFor)
	close(k.said)
}

// remember makes room for what is being learned; c.mu is held.
func (c *Client) remember(d digest.Digest, k *known) {
	for other := range c.providers {
		if len(c.providers) < maxKnown {
			break
		}
		delete(c.providers, other)
	}
	c.providers[d] = k
}

// askKeepers asks the keepers of a blob's digest for its providers. The first who
// knows some is enough. It takes [askKeepersFor] at most.
func (c *Client) askKeepers(ctx context.Context, host string, d digest.Digest) []tracker.ID {
	view := c.cfg.Members.View()
	self := view.Self().ID
	ctx, cancel := context.WithTimeout(ctx, askKeepersFor)
	defer cancel()
	answers := make(chan []tracker.ID, tracker.Copies)
	asked := 0
	for _, p := range view.Keepers(string(d), tracker.Copies) {
		switch {
		case p.ID == self && c.cfg.Providers != nil:
			asked++
			answers <- c.cfg.Providers.Of(d)
		case p.ID != self && c.peers.usable(p.ID):
			asked++
			go func() { answers <- c.askKeeper(ctx, p.ID, wire.MapRequest{Host: host, Blob: d}) }()
		}
	}
	for range asked {
		ids := slices.DeleteFunc(<-answers, func(id tracker.ID) bool { return id == self })
		if len(ids) > 0 {
			return ids
		}
	}
	return nil
}

// askKeeper asks one keeper, which may have the blob itself.
func (c *Client) askKeeper(ctx context.Context, id tracker.ID, q wire.MapRequest) []tracker.ID {
	m, err := c.Map(ctx, id, q)
	if err == nil && m.Proven {
		m.Providers = append(m.Providers, id)
	}
	if err != nil && ctx.Err() != context.Canceled {
		c.fault(id, err)
	}
	return m.Providers
}
