package p2p

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// maxTelling is how many members are told something at once.
const maxTelling = 32

// Others returns the other members, those of a zone alone unless that is nil.
func (c *Client) Others(zone *string) (others []tracker.Peer) {
	view := c.cfg.Members.View()
	for _, m := range view.Peers() {
		if m.ID != view.Self().ID && (zone == nil || m.Zone == *zone) {
			others = append(others, m)
		}
	}
	return others
}

// Each does something with several members side by side, and returns with how many of them
// that succeeded, and what kept it from the others, one error for each.
func (c *Client) Each(members []tracker.Peer, do func(tracker.Peer) error) (done int, err error) {
	var mu sync.Mutex
	var errs []error
	var all sync.WaitGroup
	turn := make(chan struct{}, maxTelling)
	for _, m := range members {
		turn <- struct{}{}
		all.Go(func() {
			defer func() { <-turn }()
			err := do(m)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("member %s (%s): %w", m.Name, m.ID, err))
				return
			}
			done++
		})
	}
	all.Wait()
	return done, errors.Join(errs...)
}

// Forget tells every other member to forget tags. It returns how many have, and
// what kept the others, after a few seconds at most.
func (c *Client) Forget(ctx context.Context, q wire.Forget) (told int, err error) {
	ctx, cancel := context.WithTimeout(ctx, learnFor)
	defer cancel()
	return c.Each(c.Others(nil), func(m tracker.Peer) error {
		return c.tell(ctx, m.ID, wire.Frame{Type: wire.TypeForget, Header: q.Header()})
	})
}

// orderAgain is how long after it could not be sent an order is sent again.
const orderAgain = 200 * time.Millisecond

// Order has a member do something, and returns what that brought. It waits for as long as
// ctx lasts, and tries as long to reach the member: nobody else can be asked for it.
func (c *Client) Order(ctx context.Context, id tracker.ID, o wire.Order, says []byte) (brought []byte, err error) {
	if len(says) > wire.MaxOrder {
		return nil, wire.ErrTooLarge
	}
	frame := wire.Frame{Type: wire.TypeOrder, Header: o.Header(), Body: says}
	f, err := c.ask(ctx, id, frame)
	for errors.As(err, new(notSentError)) {
		select {
		case <-time.After(orderAgain):
			f, err = c.ask(ctx, id, frame)
			continue
		case <-ctx.Done():
		}
		break
	}
	if err != nil {
		return nil, err
	}
	if f.Type != wire.TypeAnswer {
		return nil, c.refusal(id, f)
	}
	return f.Body, nil
}
