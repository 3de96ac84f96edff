package p2p

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
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

// Config holds what a [Client] is made of. Fields without a stated zero are
// required.
type Config struct {
	Transport Transport
	Members   tracker.Members
	Signer    Signer
	// Providers is what others have announced to this node. nil is nothing.
	Providers *tracker.Providers
	Timing    Timing
	// Random decides what is left to chance. It is used by one goroutine at a time.
	Random *rand.Rand
	// Download bounds what comes from all members. nil does not.
	Download *Limiter
	// Upload bounds what goes to all members. nil does not.
	Upload *Limiter
	// Parents are the sites that members fetch from. nil is for a cluster without.
	Parents Parents
	// Report is told of wrong bytes and wrong claims, after which their origin is in
	// quarantine. nil ignores them.
	Report func(error)
	// Links returns the links before and after a chunk of a blob that is known to have matched its
	// digest. nil knows none.
	Links func(ref chunk.Ref) (before, after chunk.Link, ok bool)
	// Tracer makes spans of what is done for others; nil makes none.
	Tracer otel.Tracer
	// Traffic is told of bytes that came and went. nil ignores them.
	Traffic func(in, out int64)
}

// Timing says how long a node waits for others.
type Timing = decide.Timing

// Client asks other members. It is safe for concurrent use.
type Client struct {
	cfg    Config
	peers  *Peers
	claims *Claims

	transits transits
	sending  atomic.Int32 // answers with chunks

	mu        sync.Mutex
	random    *rand.Rand
	providers map[digest.Digest]*known // what keepers have said lately
}

// NewClient returns a client. Run it.
func NewClient(cfg Config) *Client {
	cfg.Timing = cfg.Timing.WithDefaults()
	if cfg.Report == nil {
		cfg.Report = func(error) {}
	}
	if cfg.Traffic == nil {
		cfg.Traffic = func(int64, int64) {}
	}
	c := &Client{cfg: cfg, random: cfg.Random, providers: make(map[digest.Digest]*known)}
	c.peers = newPeers(cfg.Transport, cfg.Members, cfg.Traffic)
	c.claims = NewClaims(cfg.Signer, c.blame)
	c.claims.Believe(cfg.Parents)
	return c
}

// Peers returns what the client knows of other members.
func (c *Client) Peers() *Peers { return c.peers }

// Claims returns why chunks may be lent.
func (c *Client) Claims() *Claims { return c.claims }

// Run closes lanes that are idle, until ctx ends; then all of them. When it returns
// the client has no goroutine left but those of its callers.
func (c *Client) Run(ctx context.Context) {
	tick := time.NewTicker(laneIdle / 4)
	defer tick.Stop()
	for {
		c.peers.tidy()
		select {
		case <-ctx.Done():
			c.peers.close()
			return
		case <-tick.C:
		}
	}
}

// blame puts a member into quarantine. Only wrong bytes are worth a report: one that
// breaks the protocol has given none.
func (c *Client) blame(id tracker.ID, err error) {
	c.peers.blame(id, err)
	if chunk.IsCorrupt(err) {
		c.cfg.Report(err)
	}
}

// unavailableError is a member's word that it cannot get something.
type unavailableError struct {
	id tracker.ID
	wire.Unavailable
}

func (e *unavailableError) Error() string {
	return fmt.Sprintf("peer %s: unavailable: %s", e.id, e.Message)
}

// busyError refers to others.
type busyError struct{ referrals []tracker.ID }

func (e *busyError) Error() string { return "peer is busy" }

// lent is a chunk as another member has given it, checked.
type lent struct {
	ref   chunk.Ref
	bytes []byte
	claim wire.Claim // of no meaning for a whole blob
}

// keep remembers why the chunk may be lent on: when it is the one that is used, lest
// the claim on one that came from elsewhere be taken for its.
func (c *Client) keep(host string, l lent) {
	if !l.ref.Whole() && l.claim.Says() && !c.claims.Of(host).Suspected(l.ref.Blob) { // else it is not taken
		c.claims.Of(host).Keep(l.ref, l.claim)
	}
}

// get asks one member for adjacent chunks of a blob, and yields them, checked, in
// order. progress is told of words that the member waits.
func (c *Client) get(ctx context.Context, id tracker.ID, q wire.Get, refs []chunk.Ref, progress func(int64), yield func(lent) error) (err error) {
	ctx, span := trace.Start(ctx, "ask member", otel.SpanKindClient, attribute.String("granary.peer", string(id)), attribute.Bool("granary.owner", q.Role != wire.ToHolder))
	defer func() { span.End(err) }()
	q.Repository = named(ctx, q.Repository)
	call, err := c.peers.request(ctx, id, wire.Frame{Type: wire.TypeGet, Header: q.Header()}, len(refs))
	if err != nil {
		return err
	}
	defer call.cancel()
	for began := false; ; began = true {
		f, err := call.next(ctx)
		if err != nil {
			return err
		}
		if !began {
			c.peers.began(id, c.peers.now().Sub(call.sent))
		}
		switch {
		case f.Type == wire.TypeData && len(refs) > 0: // [lane.hand] lets pass no more than were asked for
			l, err := c.accept(id, refs[0], f)
			if err != nil {
				return err
			}
			if err := yield(l); err != nil {
				return err
			}
			refs = refs[1:]
		case f.Type == wire.TypeProgress:
			p, err := wire.ReadProgress(f.Header)
			if err != nil {
				return fmt.Errorf("%w: %w", errBroken, err)
			}
			progress(p.Bytes)
		case f.Type == wire.TypeDone && len(refs) == 0:
			return nil
		default:
			return c.refusal(id, f)
		}
	}
}

// refusal turns the last frame of an answer into what it says.
func (c *Client) refusal(id tracker.ID, f wire.Frame) error {
	switch f.Type {
	case wire.TypeNotFound:
		return chunk.ErrNotFound
	case wire.TypeBusy:
		if b, err := wire.ReadBusy(f.Header); err == nil {
			return &busyError{b.Referrals}
		}
	case wire.TypeUnavailable:
		if u, err := wire.ReadUnavailable(f.Header); err == nil {
			u.Message = strings.ToValidUTF8(u.Message, "?")
			return &unavailableError{id, u}
		}
	}
	return fmt.Errorf("%w: an answer of type %d", errBroken, f.Type)
}

// errUntrusted says that a chunk's signer is not believed, which is not the fault
// of whoever has sent it.
var errUntrusted = errors.New("its signer is not believed")

// accept checks a chunk and the claim that came with it.
func (c *Client) accept(id tracker.ID, ref chunk.Ref, f wire.Frame) (lent, error) {
	d, err := wire.ReadData(f.Header)
	if err != nil || d.Index != ref.Index() {
		return lent{}, fmt.Errorf("%w: not the chunk that was asked for", errBroken)
	}
	p := f.Body
	if d.Compressed {
		if p, err = decompress(p, ref.Size); err != nil {
			return lent{}, &chunk.CorruptError{Source: "peer " + string(id), Ref: ref, Reason: "it cannot be decompressed"}
		}
	}
	if err := c.claims.Check(ref, p, d.Claim, id); err != nil {
		return lent{}, err
	}
	if err := c.fits(ref, p, d.Claim); err != nil {
		return lent{}, err
	}
	if !ref.Whole() && !c.peers.trusted(d.Claim.Signer) {
		return lent{}, fmt.Errorf("peer %s: chunk %s: signed by %s: %w", id, ref, d.Claim.Signer, errUntrusted)
	}
	return lent{ref, p, d.Claim}, nil
}

// fits checks a chunk of a blob that has matched here, whatever a member has signed for. Who has
// is to blame: the claim is right, and the blob is not so.
func (c *Client) fits(ref chunk.Ref, p []byte, claim wire.Claim) error {
	if c.cfg.Links == nil || ref.Whole() {
		return nil
	}
	before, after, ok := c.cfg.Links(ref)
	if !ok || before == "" && after == "" {
		return nil
	}
	err := ref.CheckLink("peer "+string(claim.Signer), before, after, p)
	if err == nil || !claim.Says() {
		return err
	}
	c.blame(claim.Signer, err)
	return fmt.Errorf("chunk %s: signed by %s: %w", ref, claim.Signer, errUntrusted)
}

// notSentError says that a request has not left this node: it may be sent again.
type notSentError struct{ error }

func (e notSentError) Unwrap() error { return e.error }

// ask sends a request that one frame answers.
func (c *Client) ask(ctx context.Context, id tracker.ID, f wire.Frame) (wire.Frame, error) {
	call, err := c.peers.request(ctx, id, f, 0)
	if err != nil {
		return wire.Frame{}, notSentError{err}
	}
	defer call.cancel()
	for {
		f, err := call.next(ctx)
		if err != nil || f.Type.Last() {
			return f, err
		}
	}
}

// Map asks a member what it has of a blob, and who else has it.
func (c *Client) Map(ctx context.Context, id tracker.ID, q wire.MapRequest) (m wire.Map, err error) {
	f, err := c.ask(ctx, id, wire.Frame{Type: wire.TypeMap, Header: q.Header()})
	if err != nil {
		return m, err
	}
	if f.Type != wire.TypeMapAnswer {
		return m, c.refusal(id, f)
	}
	if m, err = wire.ReadMap(f.Header); err != nil {
		return m, fmt.Errorf("%w: %w", errBroken, err)
	}
	return m, nil
}

// Learn tells a member what was learned of a repository, see [wire.Learn].
func (c *Client) Learn(ctx context.Context, id tracker.ID, repo wire.Repository, facts []byte) error {
	return c.tell(ctx, id, wire.Frame{Type: wire.TypeLearn, Header: wire.Learn{Repository: repo}.Header(), Body: facts})
}

// tell sends a request to which there is nothing to say.
func (c *Client) tell(ctx context.Context, id tracker.ID, f wire.Frame) error {
	f, err := c.ask(ctx, id, f)
	if err == nil && f.Type != wire.TypeDone {
		err = c.refusal(id, f)
	}
	return err
}

func (c *Client) self() tracker.ID { return c.cfg.Signer.ID() }

// chance returns a source of randomness of its own for one pursuit.
func (c *Client) chance() *rand.Rand {
	c.mu.Lock()
	defer c.mu.Unlock()
	return rand.New(rand.NewPCG(c.random.Uint64(), c.random.Uint64()))
}

// named returns a repository with the name of the request that it is asked for.
func named(ctx context.Context, repo wire.Repository) wire.Repository {
	from := trace.Carry(ctx)
	repo.Request, repo.Trace, repo.Via = from.ID, from.Trace, from.Via
	return repo
}
