package p2p

import (
	"cmp"
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/proxy/trace"
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

// StripeSize returns the size of the stripes of a blob of so many bytes, as this node sees the cluster now, by [decide.StripeSize].
func (c *Client) StripeSize(total int64) int64 {
	return decide.StripeSize(total, c.cfg.Members.View().Near())
}

// stripeOf returns the stripe that a chunk belongs to. A blob of one chunk is
// placed by its digest, which is its first stripe.
func (c *Client) stripeOf(host string, ref chunk.Ref) decide.Stripe {
	size := c.StripeSize(ref.Total)
	return decide.Stripe{Host: host, Blob: ref.Blob, Size: size, Number: int(ref.Offset / size)}
}

// placeOf returns the key by which a chunk is placed.
func (c *Client) placeOf(ref chunk.Ref) string {
	return tracker.StripeKey(ref.Blob, c.stripeOf("", ref).Number)
}

// GetRun implements [chunk.Runner]. The stripes of a run are got at the same time.
func (s *placed) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	c, left := s.client, refs
	if len(refs) == 0 || c.cfg.Members.View().Alone() || c.claims.Of(s.repo.Host).Suspected(refs[0].Blob) {
		return chunk.GetRun(ctx, s.own, refs, yield)
	}
	var stop error
	take := c.unlessRefuted(s.repo.Host, func(ref chunk.Ref, p []byte) error {
		if len(left) > 0 && ref.Offset == left[0].Offset { // else it came along
			left = left[1:]
		}
		return yield(ref, p)
	})
	err := s.fromMembers(ctx, refs, func(ref chunk.Ref, p []byte) error {
		stop = take(ref, p)
		return stop
	})
	if stop == errRefuted {
		return chunk.GetRun(ctx, s.own, left, yield)
	}
	return err
}

func (s *placed) fromMembers(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	stripes := split(refs, s.client.StripeSize(refs[0].Total))
	if len(stripes) == 1 {
		return s.pursue(ctx, stripes[0], yield)
	}
	return s.together(ctx, stripes, yield)
}

// together gets stripes at the same time, and yields their chunks in order.
func (s *placed) together(ctx context.Context, stripes [][]chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	getting, cancel := context.WithCancel(ctx)
	defer cancel()
	var arriving []chan arrival
	for _, stripe := range stripes {
		c := make(chan arrival, len(stripe)+1)
		arriving = append(arriving, c)
		go func() {
			ctx, origin := chunk.WithOrigin(getting)
			send := func(a arrival) error {
				select {
				case c <- a:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			err := s.pursue(ctx, stripe, func(ref chunk.Ref, p []byte) error {
				return send(arrival{lent: lent{ref: ref, bytes: p}, origin: origin()})
			})
			_ = send(arrival{end: true, err: err})
		}()
	}
	for _, c := range arriving {
		if err := relay(ctx, c, yield); err != nil {
			return err
		}
	}
	return nil
}

// relay yields what arrives of one stripe.
func relay(ctx context.Context, c <-chan arrival, yield func(chunk.Ref, []byte) error) error {
	for {
		select {
		case a := <-c:
			if a.end {
				return a.err
			}
			chunk.SetOrigin(ctx, a.origin)
			if err := yield(a.ref, a.bytes); err != nil {
				return err
			}
		case <-ctx.Done(): // then whoever sends may not say that it has ended
			return ctx.Err()
		}
	}
}

// split cuts a run where stripes end.
func split(refs []chunk.Ref, size int64) (stripes [][]chunk.Ref) {
	for len(refs) > 0 {
		n := 1
		for n < len(refs) && refs[n].Offset/size == refs[0].Offset/size {
			n++
		}
		stripes = append(stripes, refs[:n])
		refs = refs[n:]
	}
	return stripes
}

// arrival is something that happened to an attempt.
type arrival struct {
	id tracker.ID
	by *asking // the attempt: the same member may be asked again
	lent
	origin   string // of the node's own: the name of its source
	progress bool
	said     int64 // with progress: bytes so far
	end      bool
	err      error // with end
}

// asking is one attempt that is being made.
type asking struct {
	cancel  context.CancelFunc
	transit transit // that comes of it
}

// errand is the driving of one pursuit: what it orders is done, and what comes of
// that it is told.
type errand struct {
	*placed
	pursuit  *decide.Pursuit
	stripe   wire.Get
	key      decide.Stripe
	left     []chunk.Ref // not given yet
	yield    func(chunk.Ref, []byte) error
	arrivals chan arrival
	under    map[tracker.ID]*asking
	ownErr   error
	err      error // the last
}

// pursue gets the chunks of one stripe.
func (s *placed) pursue(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) (err error) {
	c := s.client
	owners := c.owners(refs[0])
	if len(owners) == 0 || owners[0].ID == decide.Itself {
		return chunk.GetRun(ctx, s.own, refs, yield)
	}
	// Before anybody is asked, lest this node's own limit be taken for silence.
	if err := c.cfg.Download.Wait(ctx, bytesOf(refs)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx, span := trace.Start(ctx, "get from members", otel.SpanKindInternal, attribute.String("oci.reference", string(refs[0].Blob)),
		attribute.Int64("granary.offset", refs[0].Offset), attribute.Int("granary.chunks", len(refs)))
	defer func() { span.End(err) }()
	e := &errand{
		placed: s, key: c.stripeOf(s.repo.Host, refs[0]), stripe: request(s.repo, wire.ToHolder, refs), left: refs, yield: yield, arrivals: make(chan arrival), under: make(map[tracker.ID]*asking),
		pursuit: decide.NewPursuit(c.cfg.Timing, owners, c.peers, c.chance()),
	}
	defer e.end()
	return e.run(ctx)
}

// ownersAsked is how many owners of a stripe are tried, one after the other.
const ownersAsked = 5

// owners returns who may be asked for a chunk, best first.
func (c *Client) owners(ref chunk.Ref) (all []decide.Candidate) {
	view := c.cfg.Members.View()
	self := view.Self().ID
	for _, p := range c.ranked(view, c.placeOf(ref)) {
		id := p.ID
		if id == self {
			id = decide.Itself
		} else if !c.peers.usable(id) {
			continue // the next one is the owner until it is back
		}
		all = append(all, decide.Candidate{ID: id, Hedge: c.peers.hedge(id, c.cfg.Timing)})
		if id == decide.Itself || len(all) == ownersAsked {
			break
		}
	}
	return all
}

// ranked returns the owners of a key, best first: as many as are asked and some more, or all if of those too few can be asked.
func (c *Client) ranked(view *tracker.View, key string) []tracker.Peer {
	some := view.Owners(key, 2*ownersAsked)
	can := 0
	for _, p := range some {
		if p.ID == view.Self().ID {
			return some
		}
		if c.peers.usable(p.ID) {
			can++
		}
	}
	if can >= ownersAsked || len(some) < 2*ownersAsked {
		return some
	}
	return view.Owners(key, len(view.Peers()))
}

// Owns reports whether this node answers for a chunk in its zone.
func (c *Client) Owns(ref chunk.Ref) bool {
	view := c.cfg.Members.View()
	for _, p := range view.Owners(c.placeOf(ref), 1) {
		return p.ID == view.Self().ID
	}
	return true // for want of anybody
}

// Ahead returns how many bytes from its position on a reader of a cold blob has fetched, by [decide.Ahead].
func (c *Client) Ahead() int64 {
	return decide.Ahead(c.cfg.Members.View().Near())
}

// run returns when all has been given, or nobody is left who might.
func (e *errand) run(ctx context.Context) error {
	now := e.client.peers.now
	e.obey(ctx, e.pursuit.Start(now()))
	for len(e.left) > 0 {
		if len(e.under) == 0 {
			return cmp.Or(e.ownErr, e.err)
		}
		timer, stop := e.timer(now())
		select {
		case a := <-e.arrivals:
			if ctx.Err() != nil || e.under[a.id] != a.by {
				break // what ends because it is not wanted is nobody's fault
			}
			if err := e.tell(ctx, a, now()); err != nil {
				stop()
				return err
			}
		case <-timer:
			e.wake(ctx, now())
		case <-ctx.Done():
			stop()
			return ctx.Err()
		}
		stop()
	}
	e.thank()
	return nil
}

// thank tells the owner, if a holder has given the stripe to which it referred: the
// holder is free for the next one, and so is this node.
func (e *errand) thank() {
	c := e.client
	for _, owner := range e.pursuit.Owed() {
		c.peers.background(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, learnFor)
			defer cancel()
			_, _ = c.ask(ctx, owner, wire.Frame{Type: wire.TypeHave, Header: e.stripe.Header()})
		})
	}
}

// timer returns a channel that delivers at the pursuit's deadline.
func (e *errand) timer(now time.Time) (<-chan time.Time, func()) {
	at := e.pursuit.Deadline()
	if at.IsZero() {
		return nil, func() {}
	}
	t := time.NewTimer(max(at.Sub(now), time.Millisecond))
	return t.C, func() { t.Stop() }
}

// wake holds it against those who are silent, who are then not asked instead of
// themselves.
func (e *errand) wake(ctx context.Context, now time.Time) {
	orders, silent := e.pursuit.Wake(now)
	for _, id := range silent {
		e.client.peers.fail(id)
	}
	e.obey(ctx, orders)
}

func (e *errand) obey(ctx context.Context, orders []decide.Order) {
	for _, o := range orders {
		if o.Cancel {
			e.drop(o.Ask)
			continue
		}
		attempt, cancel := context.WithCancel(ctx)
		by := &asking{cancel, transit{e.key, cmp.Or(o.Owner, o.Ask)}}
		e.client.transits.add(by.transit, 1)
		e.under[o.Ask] = by
		go e.attempt(attempt, by, o, e.left)
	}
}

// drop ends an attempt.
func (e *errand) drop(id tracker.ID) {
	if a := e.under[id]; a != nil {
		a.cancel()
		e.client.transits.add(a.transit, -1)
		delete(e.under, id)
	}
}

// end ends what is under way.
func (e *errand) end() {
	for id := range e.under {
		e.drop(id)
	}
}

// attempt asks one member, or the node's own source, for refs.
func (e *errand) attempt(ctx context.Context, by *asking, o decide.Order, refs []chunk.Ref) {
	send := func(a arrival) error {
		a.id, a.by = o.Ask, by
		select {
		case e.arrivals <- a:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var err error
	if o.Ask == decide.Itself {
		ctx, origin := chunk.WithOrigin(ctx)
		err = chunk.GetRun(ctx, e.own, refs, func(ref chunk.Ref, p []byte) error {
			return send(arrival{lent: lent{ref: ref, bytes: p}, origin: origin()})
		})
	} else {
		progress := func(n int64) { _ = send(arrival{progress: true, said: n}) }
		q := request(e.repo, o.Role, refs)
		q.Owner, q.Load = o.Owner, int(e.client.sending.Load())
		err = e.client.get(ctx, o.Ask, q, refs, progress, func(l lent) error { return send(arrival{lent: l}) })
	}
	_ = send(arrival{end: true, err: err})
}

// tell tells the pursuit what has arrived, and does what it orders. The error ends
// the errand.
func (e *errand) tell(ctx context.Context, a arrival, now time.Time) error {
	switch {
	case a.progress:
		e.obey(ctx, e.pursuit.Progress(a.id, a.said, now))
	case !a.end:
		e.obey(ctx, e.pursuit.Data(a.id, now))
		return e.give(ctx, a)
	default:
		e.drop(a.id)
		if a.err == nil { // and yet not all is there
			a.err = chunk.ErrNotFound
		}
		if e.err = a.err; a.id == decide.Itself {
			e.ownErr = a.err
			e.pursuit.OwnFailed()
			return nil
		}
		e.obey(ctx, e.ended(a.id, a.err, now))
	}
	return nil
}

// give gives a chunk on. One that came from two sides is given once.
func (e *errand) give(ctx context.Context, a arrival) error {
	if len(e.left) == 0 || a.ref.Offset != e.left[0].Offset {
		return nil
	}
	e.left = e.left[1:]
	if a.id != decide.Itself {
		e.client.keep(e.repo.Host, a.lent)
		a.origin = peerName
	}
	chunk.SetOrigin(ctx, a.origin)
	return e.yield(a.ref, a.bytes)
}

// ended returns what to do after a member's answer has ended before all was there.
func (e *errand) ended(id tracker.ID, err error, now time.Time) []decide.Order {
	e.client.fault(id, err)
	var busy *busyError
	var unavailable *unavailableError
	switch {
	case errors.As(err, &busy):
		return e.pursuit.Busy(id, busy.referrals, now)
	case errors.As(err, &unavailable):
		return e.pursuit.Unavailable(id, unavailable.Cause, now)
	case errors.Is(err, chunk.ErrNotFound):
		return e.pursuit.NotFound(id, now)
	}
	return e.pursuit.Failed(id, now)
}
