package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/proxy/trace"
	"github.com/granary-oci/granary/tracker"
)

// answer answers a request, and returns the last frame of the answer.
func (l *served) answer(ctx context.Context, f wire.Frame) wire.Frame {
	s := l.server
	switch f.Type { // what takes no time is never too much
	case wire.TypePing:
		return wire.Frame{Type: wire.TypeDone}
	case wire.TypeHave: // for this others may wait
		q, err := wire.ReadGet(f.Header)
		if err == nil {
			s.spreads.have(s.stripe(q), l.from)
		}
		return done(err)
	}
	if !s.begin(l.guest) {
		return unavailable(wire.CauseOverloaded, errors.New("too many requests"))
	}
	defer s.end(l.guest)
	switch f.Type {
	case wire.TypeGet:
		q, err := wire.ReadGet(f.Header)
		if err != nil {
			return unavailable(wire.CauseFailed, err)
		}
		return l.get(ctx, f.ID, q)
	case wire.TypeMap:
		q, err := wire.ReadMapRequest(f.Header)
		if err != nil {
			return unavailable(wire.CauseFailed, err)
		}
		return wire.Frame{Type: wire.TypeMapAnswer, Header: s.backend.Map(ctx, q).Header()}
	case wire.TypeAsk:
		q, err := wire.ReadAsk(f.Header)
		if err != nil {
			return unavailable(wire.CauseFailed, err)
		}
		return l.ask(ctx, f.ID, q)
	case wire.TypeLearn:
		q, err := wire.ReadLearn(f.Header)
		if err == nil {
			err = s.backend.Learn(q.Repository, f.Body)
		}
		return done(err)
	case wire.TypeForget:
		q, err := wire.ReadForget(f.Header)
		if err == nil {
			err = s.backend.Forget(q)
		}
		return done(err)
	case wire.TypeOrder:
		o, err := wire.ReadOrder(f.Header)
		if err != nil {
			return unavailable(wire.CauseFailed, err)
		}
		return l.order(ctx, f.ID, o, f.Body)
	}
	return unavailable(wire.CauseFailed, fmt.Errorf("a request of type %d is not known here", f.Type))
}

// stripe returns the stripe of the first chunk that is asked for.
func (s *Server) stripe(q wire.Get) decide.Stripe {
	return s.client.stripeOf(q.Host, chunk.Ref{Blob: q.Blob, Total: q.Total, Offset: int64(q.First) * chunk.Size})
}

// allOf reports whether all of a stripe is asked for.
func allOf(k decide.Stripe, q wire.Get) bool {
	of := int(k.Size / chunk.Size)
	first := k.Number * of
	return q.First <= first && q.First+q.Count >= min(first+of, chunk.Count(q.Total))
}

func done(err error) wire.Frame {
	if err != nil {
		return unavailable(wire.CauseFailed, err)
	}
	return wire.Frame{Type: wire.TypeDone}
}

func unavailable(cause wire.Cause, err error) wire.Frame {
	return wire.Frame{Type: wire.TypeUnavailable, Header: wire.Unavailable{Cause: cause, Message: err.Error()}.Header()}
}

// ended returns the last frame of an answer that ended with err.
func (l *served) ended(err error) wire.Frame {
	var busy *busyError
	switch {
	case err == nil:
		return wire.Frame{Type: wire.TypeDone}
	case errors.As(err, &busy):
		return wire.Frame{Type: wire.TypeBusy, Header: wire.Busy{Referrals: busy.referrals}.Header()}
	case errors.Is(err, chunk.ErrNotFound) && l.server.backend.Cause(err) == wire.CauseFailed:
		return wire.Frame{Type: wire.TypeNotFound}
	}
	return unavailable(l.server.backend.Cause(err), err)
}

// name names the request that something is asked for. What is returned is to be called with what
// comes of it.
func (l *served) name(ctx context.Context, repo wire.Repository, what string, attrs ...attribute.KeyValue) (context.Context, func(error)) {
	s := l.server
	attrs = append(attrs, attribute.String("granary.peer", string(l.from)))
	ctx, span := trace.Begin(ctx, s.client.cfg.Tracer, trace.Parent{ID: repo.Request, Trace: repo.Trace, Via: repo.Via}, what, otel.SpanKindServer, attrs...)
	return ctx, func(err error) {
		span.End(err)
		if s.log.Enabled(ctx, slog.LevelDebug) {
			s.log.DebugContext(ctx, what, "peer", l.from, "attributes", attrs, "error", err)
		}
	}
}

// ask answers a question.
func (l *served) ask(ctx context.Context, id uint32, q wire.Ask) wire.Frame {
	defer l.wait(ctx, id, func() int64 { return 0 })()
	ctx, end := l.name(ctx, q.Repository, "answer a member", attribute.String("oci.repository", q.Host+"/"+q.Name))
	a, body, err := l.server.backend.Ask(ctx, q)
	end(err)
	return l.answered(a, body, err)
}

// order does what a member passes on.
func (l *served) order(ctx context.Context, id uint32, o wire.Order, says []byte) wire.Frame {
	defer l.wait(ctx, id, func() int64 { return 0 })()
	brought, err := l.server.backend.Order(ctx, o, says)
	return l.answered(wire.Answer{}, brought, err)
}

func (l *served) answered(a wire.Answer, body []byte, err error) wire.Frame {
	if err != nil {
		return l.ended(err)
	}
	if len(body) > wire.MaxBody {
		return unavailable(wire.CauseFailed, wire.ErrTooLarge)
	}
	return wire.Frame{Type: wire.TypeAnswer, Header: a.Header(), Body: body}
}

// get answers a request for chunks.
func (l *served) get(ctx context.Context, id uint32, q wire.Get) wire.Frame {
	m, err := chunk.Grid(q.Blob, q.Total)
	if err != nil {
		return unavailable(wire.CauseFailed, err)
	}
	refs := make([]chunk.Ref, q.Count)
	for i := range refs {
		refs[i] = m.At(q.First + i)
		if len(q.Digests) > 0 {
			refs[i].Digest = q.Digests[i]
		}
	}
	ctx, end := l.name(ctx, q.Repository, "lend to a member", attribute.String("oci.reference", string(q.Blob)),
		attribute.Int64("granary.offset", refs[0].Offset), attribute.Int("granary.chunks", len(refs)), attribute.Bool("granary.owner", q.Role != wire.ToHolder))
	sent := &sending{lane: l, id: id, host: q.Host, left: slices.Clone(refs)}
	defer l.wait(ctx, id, sent.bytes)()
	do := l.own
	if q.Role == wire.ToHolder {
		do = l.lend
	}
	err = do(ctx, q, refs, sent)
	end(err)
	return l.ended(err)
}

// lend answers a request that is made to a holder.
func (l *served) lend(ctx context.Context, q wire.Get, refs []chunk.Ref, sent *sending) error {
	switch {
	case q.Owner == "": // it is asked by an owner, whom nobody has referred to it
	case decide.Refuses(int(l.server.client.sending.Load()), q.Load):
		return &busyError{}
	case l.server.client.transits.under(transit{l.server.stripe(q), q.Owner}):
		return l.relay(ctx, q, refs, sent)
	}
	release, err := l.work(ctx, holding)
	if err != nil {
		return err
	}
	defer release()
	defer l.sends()()
	return l.server.backend.Stored(ctx, q.Host, refs, sent.send(ctx))
}

// relay answers a request for what is on its way here from the same owner.
func (l *served) relay(ctx context.Context, q wire.Get, refs []chunk.Ref, sent *sending) error {
	place := l.server.working[relaying]
	if !place.TryAcquire(1) {
		return &busyError{}
	}
	defer place.Release(1)
	defer l.sends()()
	return l.server.backend.Relay(ctx, q.Host, refs, sent.send(ctx))
}

// own answers a request that is made to an owner.
func (l *served) own(ctx context.Context, q wire.Get, refs []chunk.Ref, sent *sending) (err error) {
	s := l.server
	k := s.stripe(q)
	if err := l.join(ctx, k, q); err != nil {
		return err
	}
	defer func() {
		s.spreads.leave(k, l.from, err == nil && allOf(k, q))
	}()
	as := owning
	if q.Repository.First {
		as = reading
	}
	release, err := l.work(ctx, as)
	if err != nil {
		return err
	}
	defer release()
	defer l.sends()()
	return s.backend.Fetch(ctx, q.Repository, refs, sent.send(ctx))
}

// sends counts an answer with chunks, until the function it returns is called.
func (l *served) sends() (end func()) {
	n := &l.server.client.sending
	n.Add(1)
	return func() { n.Add(-1) }
}

// join waits until the asker is to be sent a stripe. The error may be a referral.
func (l *served) join(ctx context.Context, k decide.Stripe, q wire.Get) error {
	ss := l.server.spreads
	decided := make(chan decide.Verdict, 1)
	r := &decide.Request{From: l.from, Load: q.Load, FanOut: decide.FanOut(l.server.client.cfg.Members.View().Near()), Insists: q.Role == wire.ToOwnerAgain, Stuck: l.stuck, Decided: func(v decide.Verdict) { decided <- v }}
	ss.enter(k, r)
	late := time.NewTimer(waitForGiven)
	defer late.Stop()
	look := time.NewTicker(stuckAfter)
	defer look.Stop()
	for {
		select {
		case v := <-decided:
			if v.Serve {
				return nil
			}
			return &busyError{[]tracker.ID{v.Referral}}
		case <-look.C:
			ss.look(k)
		case <-late.C:
			ss.hurry(k, r)
		case <-ctx.Done():
			if !ss.quit(k, r) && (<-decided).Serve {
				ss.leave(k, l.from, false)
			}
			return ctx.Err()
		}
	}
}

// wait says several times a second that a request is being worked on, until the
// function it returns is called.
func (l *served) wait(ctx context.Context, id uint32, bytes func() int64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		t := time.NewTimer(firstProgress)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
			if l.write(ctx, wire.Frame{Type: wire.TypeProgress, ID: id, Header: wire.Progress{Bytes: bytes()}.Header()}) != nil {
				return
			}
			t.Reset(nextProgress)
		}
	}()
	return func() { cancel(); <-gone }
}

// sending sends the chunks of one answer.
type sending struct {
	lane *served
	id   uint32
	host string
	left []chunk.Ref  // to be sent, by whoever sends
	sent atomic.Int64 // bytes
}

// bytes returns what grows as long as anything comes of the waiting: what has been
// sent, and what the upstream has sent this node. On a thin link a request waits for
// others, and that is no reason to give it up.
func (s *sending) bytes() int64 {
	return s.sent.Load() + s.lane.server.client.claims.fetched.Load()
}

// send returns what sends a chunk with a claim. A chunk that nobody vouches for is
// not found; one that came along unasked is passed over.
func (s *sending) send(ctx context.Context) func(chunk.Ref, []byte) error {
	server := s.lane.server
	return func(ref chunk.Ref, p []byte) error {
		if len(s.left) == 0 || ref.Offset != s.left[0].Offset {
			return nil
		}
		asked := s.left[0].Digest // by which the asker knows what is right
		s.left = s.left[1:]
		d := wire.Data{Index: ref.Index()}
		if !ref.Whole() && (asked == "" || digest.FromBytes(p) != asked) {
			var ok bool
			if d.Claim, ok = server.client.claims.Of(s.host).For(ref, p, server.backend.Proof(s.host, ref, p)); !ok {
				return chunk.ErrNotFound
			}
		}
		body, compressed := compress(p)
		d.Compressed = compressed
		err := s.lane.write(ctx, wire.Frame{Type: wire.TypeData, ID: s.id, Header: d.Header(), Body: body})
		s.sent.Add(ref.Size)
		return err
	}
}
