package p2p

import (
	"context"
	"errors"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// Source returns the blobs of a repository as the members have them: each stripe
// from its owner, or whoever that refers to. own is where this node gets what it
// owns, and what nobody else can get for it: from providers, say, and the upstream.
// What comes from members has been checked, and is named "peer".
func (c *Client) Source(repo wire.Repository, own chunk.Source) chunk.Source {
	return &placed{c, repo, own}
}

type placed struct {
	client *Client
	repo   wire.Repository
	own    chunk.Source
}

// Get implements [chunk.Source].
func (s *placed) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = s.GetRun(ctx, []chunk.Ref{ref}, func(_ chunk.Ref, q []byte) error {
		p = q
		return nil
	})
	return p, err
}

const stripeChunks = chunk.StripeSize / chunk.Size

// stripeOf returns the stripe that a chunk belongs to. A blob of one chunk is
// placed by its digest, which is its first stripe.
func stripeOf(ref chunk.Ref) int { return ref.Index() / stripeChunks }

// GetRun implements [chunk.Runner]. The stripes of a run are got at the same time.
func (s *placed) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if s.client.cfg.Members.View().Alone() || len(refs) > 0 && s.client.claims.Suspected(refs[0].Blob) {
		return chunk.GetRun(ctx, s.own, refs, yield)
	}
	stripes := split(refs)
	if len(stripes) == 1 {
		return s.pursue(ctx, stripes[0], yield)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var arriving []chan arrival
	for _, stripe := range stripes {
		c := make(chan arrival, len(stripe)+1)
		arriving = append(arriving, c)
		go func() {
			err := s.pursue(ctx, stripe, func(ref chunk.Ref, p []byte) error {
				c <- arrival{ref: ref, bytes: p}
				return nil
			})
			c <- arrival{err: err, end: true}
		}()
	}
	for _, c := range arriving {
		for a := range c {
			if a.err != nil {
				return a.err
			}
			if a.end {
				break
			}
			if err := yield(a.ref, a.bytes); err != nil {
				return err
			}
		}
	}
	return nil
}

// split cuts a run where stripes end.
func split(refs []chunk.Ref) (stripes [][]chunk.Ref) {
	for len(refs) > 0 {
		n := 1
		for n < len(refs) && stripeOf(refs[n]) == stripeOf(refs[0]) {
			n++
		}
		stripes = append(stripes, refs[:n])
		refs = refs[n:]
	}
	return stripes
}

// arrival is something that happened to an attempt.
type arrival struct {
	id       tracker.ID
	ref      chunk.Ref
	bytes    []byte
	origin   string // of the node's own: the name of its source
	progress bool
	said     int64 // with progress: bytes so far
	end      bool
	err      error // with end
}

// errand is the driving of one pursuit: what it orders is done, and what comes of
// that it is told.
type errand struct {
	*placed
	pursuit  *pursuit
	left     []chunk.Ref // not given yet
	yield    func(chunk.Ref, []byte) error
	arrivals chan arrival
	under    map[tracker.ID]context.CancelFunc
	ownErr   error
}

// pursue gets the chunks of one stripe.
func (s *placed) pursue(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	c := s.client
	owners := c.owners(refs[0])
	if len(owners) == 0 || owners[0].id == itself {
		return chunk.GetRun(ctx, s.own, refs, yield)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e := &errand{
		placed: s, left: refs, yield: yield, arrivals: make(chan arrival), under: make(map[tracker.ID]context.CancelFunc),
		pursuit: &pursuit{timing: c.cfg.Timing, owners: owners, usable: c.peers.usable, alive: c.peers.lastHeard, random: c.chance()},
	}
	return e.run(ctx)
}

// ownersAsked is how many owners of a stripe are tried, one after the other.
const ownersAsked = 3

// owners returns who may be asked for a chunk, best first.
func (c *Client) owners(ref chunk.Ref) (all []candidate) {
	view := c.cfg.Members.View()
	self := view.Self().ID
	for _, p := range view.Owners(tracker.StripeKey(ref.Blob, stripeOf(ref)), len(view.Peers())) {
		id := p.ID
		if id == self {
			id = itself
		} else if !c.peers.usable(id) {
			continue // the next one is the owner until it is back
		}
		all = append(all, candidate{id, c.peers.hedge(id, c.cfg.Timing)})
		if id == itself || len(all) == ownersAsked {
			break
		}
	}
	return all
}

func (e *errand) run(ctx context.Context) error {
	now := e.client.peers.now
	e.obey(ctx, e.pursuit.start(now()))
	for len(e.left) > 0 {
		timer, stop := e.timer(now())
		select {
		case a := <-e.arrivals:
			stop()
			if err := e.tell(ctx, a, now()); err != nil {
				return err
			}
		case <-timer:
			e.obey(ctx, e.pursuit.wake(now()))
			e.fail(now(), "")
		case <-ctx.Done():
			stop()
			return ctx.Err()
		}
	}
	return nil
}

// timer returns a channel that delivers at the pursuit's deadline.
func (e *errand) timer(now time.Time) (<-chan time.Time, func()) {
	at := e.pursuit.deadline()
	if at.IsZero() {
		return nil, func() {}
	}
	t := time.NewTimer(max(at.Sub(now), time.Millisecond))
	return t.C, func() { t.Stop() }
}

// fail holds it against those whose silence made others be asked, but not against
// whoever has spoken just now.
func (e *errand) fail(now time.Time, spoke tracker.ID) {
	for _, id := range e.pursuit.silent(now) {
		if id != spoke {
			e.client.peers.fail(id)
		}
	}
}

func (e *errand) obey(ctx context.Context, orders []order) {
	for _, o := range orders {
		if o.cancel {
			if cancel := e.under[o.ask]; cancel != nil {
				cancel()
				delete(e.under, o.ask)
			}
			continue
		}
		actx, cancel := context.WithCancel(ctx)
		e.under[o.ask] = cancel
		go e.attempt(actx, o, e.left)
	}
}

// attempt asks one member, or the node's own source, for refs.
func (e *errand) attempt(ctx context.Context, o order, refs []chunk.Ref) {
	send := func(a arrival) error {
		a.id = o.ask
		select {
		case e.arrivals <- a:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	give := func(ref chunk.Ref, p []byte) error { return send(arrival{ref: ref, bytes: p}) }
	var err error
	if o.ask == itself {
		ctx, origin := chunk.WithOrigin(ctx)
		err = chunk.GetRun(ctx, e.own, refs, func(ref chunk.Ref, p []byte) error {
			return send(arrival{ref: ref, bytes: p, origin: origin()})
		})
	} else {
		err = e.client.get(ctx, o.ask, e.request(o.role, refs), refs, func(n int64) { _ = send(arrival{progress: true, said: n}) }, give)
	}
	_ = send(arrival{end: true, err: err})
}

func (e *errand) request(role wire.Role, refs []chunk.Ref) wire.Get {
	q := wire.Get{Repository: e.repo, Role: role, Blob: refs[0].Blob, Total: refs[0].Total, First: refs[0].Index(), Count: len(refs)}
	if role == wire.ToHolder {
		q.Authorization = "" // a holder asks nobody
	}
	for _, ref := range refs {
		if ref.Digest != "" {
			q.Digests = append(q.Digests, ref.Digest)
		}
	}
	if len(q.Digests) != len(refs) {
		q.Digests = nil
	}
	return q
}

// tell tells the pursuit what has arrived, and does what it orders. The error ends
// the errand.
func (e *errand) tell(ctx context.Context, a arrival, now time.Time) error {
	if e.under[a.id] == nil {
		return nil // cancelled meanwhile
	}
	p := e.pursuit
	switch {
	case a.progress:
		e.obey(ctx, p.progress(a.id, a.said, now))
	case !a.end:
		e.fail(now, a.id)
		e.obey(ctx, p.data(a.id, now))
		return e.give(ctx, a)
	case a.id == itself:
		delete(e.under, itself)
		if a.err != nil && p.ownFailed() {
			e.ownErr = a.err
			return nil
		}
		return a.err
	default:
		delete(e.under, a.id)
		e.obey(ctx, e.ended(a.id, a.err, now))
		if len(e.under) == 0 && len(e.left) > 0 {
			return errors.Join(e.ownErr, a.err)
		}
	}
	return nil
}

// give gives a chunk on. One that came from two sides is given once.
func (e *errand) give(ctx context.Context, a arrival) error {
	if len(e.left) == 0 || a.ref.Offset != e.left[0].Offset {
		return nil
	}
	e.left = e.left[1:]
	if a.origin == "" {
		a.origin = peerName
	}
	chunk.SetOrigin(ctx, a.origin)
	return e.yield(a.ref, a.bytes)
}

// peerName is the source that bytes of members are accounted to.
const peerName = "peer"

// ended returns what to do after a member's answer has ended before all was there.
func (e *errand) ended(id tracker.ID, err error, now time.Time) []order {
	var busy *busyError
	var unavailable *unavailableError
	c := e.client
	switch {
	case err == nil:
		return nil
	case corrupt(err):
		c.blame(id, err)
	case errors.As(err, &busy):
		return e.pursuit.busy(id, busy.referrals, now)
	case errors.As(err, &unavailable):
		return e.pursuit.unavailable(id, unavailable.Cause, now)
	case errors.Is(err, chunk.ErrNotFound):
		return e.pursuit.notFound(id, now)
	default:
		c.peers.fail(id)
	}
	return e.pursuit.failed(id, now)
}
