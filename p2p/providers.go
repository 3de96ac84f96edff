package p2p

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const (
	providersFor = time.Second // that what keepers have said is taken to be so
	maxKnown     = 4096        // blobs whose providers are remembered
	askKeepers   = 500 * time.Millisecond
	silentHolder = 2 * time.Second // before the next one is asked
	maxHolders   = 3               // that are asked for the same
)

// known is what keepers have said of the providers of a blob.
type known struct {
	ids   []tracker.ID
	until time.Time
}

// Held returns the blobs of a registry that other members have all of. They have
// told the keepers of the blob's digest, who are asked.
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
	if len(refs) == 0 || c.cfg.Members.View().Alone() || c.claims.Suspected(refs[0].Blob) {
		return chunk.ErrNotFound
	}
	holders := slices.DeleteFunc(c.providersOf(ctx, s.host, refs[0].Blob), func(id tracker.ID) bool { return !c.peers.usable(id) })
	random := c.chance()
	random.Shuffle(len(holders), func(i, j int) { holders[i], holders[j] = holders[j], holders[i] })
	for _, id := range holders[:min(len(holders), maxHolders)] {
		var stop error
		err := s.from(ctx, id, refs, func(ref chunk.Ref, p []byte) error {
			refs = refs[1:]
			stop = yield(ref, p)
			return stop
		})
		if err == nil || stop != nil || ctx.Err() != nil {
			return err
		}
		s.fault(id, refs[0].Blob, err)
	}
	return chunk.ErrNotFound
}

// from asks one provider, as long as it is not silent.
func (s *held) from(ctx context.Context, id tracker.ID, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(silentHolder, func() { cancel(errSilent) })
	defer silence.Stop()
	e := &errand{placed: &placed{client: s.client, repo: wire.Repository{Host: s.host}}}
	err := s.client.get(ctx, id, e.request(wire.ToHolder, refs), refs, func(int64) {}, func(ref chunk.Ref, p []byte) error {
		silence.Reset(silentHolder)
		chunk.SetOrigin(ctx, peerName)
		return yield(ref, p)
	})
	if context.Cause(ctx) == errSilent {
		return errSilent
	}
	return err
}

var errSilent = errors.New("peer is silent")

// fault draws the consequence of an answer that was of no use.
func (s *held) fault(id tracker.ID, d digest.Digest, err error) {
	c := s.client
	var unavailable *unavailableError
	switch {
	case corrupt(err):
		c.blame(id, err)
	case errors.Is(err, chunk.ErrNotFound):
		c.strike(d, id)
	case !errors.As(err, &unavailable):
		c.peers.fail(id)
	}
}

// strike forgets that a member has a blob.
func (c *Client) strike(d digest.Digest, id tracker.ID) {
	if c.cfg.Providers != nil {
		c.cfg.Providers.Withdraw(d, id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.providers[d]; ok {
		k.ids = slices.DeleteFunc(slices.Clone(k.ids), func(other tracker.ID) bool { return other == id })
		c.providers[d] = k
	}
}

// providersOf returns the members that are known to have all of a blob.
func (c *Client) providersOf(ctx context.Context, host string, d digest.Digest) []tracker.ID {
	c.mu.Lock()
	k, ok := c.providers[d]
	c.mu.Unlock()
	if !ok || !c.peers.now().Before(k.until) {
		k = known{c.askKeepers(ctx, host, d), c.peers.now().Add(providersFor)}
		if ctx.Err() != nil {
			return nil
		}
		c.remember(d, k)
	}
	return slices.Clone(k.ids)
}

func (c *Client) remember(d digest.Digest, k known) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.providers {
		if len(c.providers) < maxKnown {
			break
		}
		delete(c.providers, other)
	}
	c.providers[d] = k
}

// askKeepers asks the keepers of a blob's digest for its providers. The first who
// knows some is enough.
func (c *Client) askKeepers(ctx context.Context, host string, d digest.Digest) []tracker.ID {
	view := c.cfg.Members.View()
	self := view.Self().ID
	ctx, cancel := context.WithTimeout(ctx, askKeepers)
	defer cancel()
	answers := make(chan []tracker.ID, tracker.Copies+1)
	asked := 0
	for _, p := range view.Keepers(string(d), tracker.Copies) {
		switch {
		case p.ID == self && c.cfg.Providers != nil:
			asked++
			answers <- c.cfg.Providers.Of(d)
		case p.ID != self && c.peers.usable(p.ID):
			asked++
			go func() {
				m, err := c.Map(ctx, p.ID, wire.MapRequest{Host: host, Blob: d})
				if err != nil && ctx.Err() == context.DeadlineExceeded {
					c.peers.fail(p.ID)
				}
				if m.Proven {
					m.Providers = append(m.Providers, p.ID) // it has it itself
				}
				answers <- m.Providers
			}()
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
