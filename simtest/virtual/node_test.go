package virtual

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/p2ptest"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// A node's settings, as cmd/granary/node has them.
const (
	readAhead      = 64 * mib
	readerWindow   = 32 * mib
	stripesAtFirst = 2
	stripesAtOnce  = 6
	atATime        = 3 // blobs that a runtime pulls
)

// repo is where the image is.
var repo = wire.Repository{Host: "registry.example", Name: "app"}

// node is a member of a cluster. What its disk holds survives its lives.
type node struct {
	peer    tracker.Peer
	cluster *cluster
	store   *store
	members *tracker.Static
	took    time.Duration // for the image, 0 until then

	elsewhere atomic.Int64 // requests to it as an owner that it is not
	life      atomic.Pointer[life]
}

// now returns the node's present life.
func (n *node) now() *life { return n.life.Load() }

// end ends the node's life.
func (n *node) end() { n.now().end() }

// life is a node from one start to the next.
type life struct {
	ctx       context.Context
	end       context.CancelFunc
	client    *p2p.Client
	providers *tracker.Providers
	own, src  chunk.Source
	budget    *chunk.Budget
	turns     *chunk.Turns
	coming    chunk.Flight // to readers
}

// start begins a life, with the claims that the one before has handed on, if any.
func (n *node) start(claims io.Reader) {
	c := n.cluster
	l := &life{providers: tracker.NewProviders(1<<16, time.Hour), budget: chunk.NewBudget(readAhead)}
	l.ctx, l.end = context.WithCancel(context.Background())
	transport := c.net.Node(n.peer.ID)
	seed := c.random.Uint64()
	l.turns = chunk.NewTurns(stripesAtFirst, stripesAtOnce, rand.New(rand.NewPCG(seed, 1)))
	l.client = p2p.NewClient(p2p.Config{
		Transport: transport, Members: n.members, Signer: p2ptest.Signer(n.peer.ID), Providers: l.providers,
		Random: rand.New(rand.NewPCG(seed, 0)), Report: func(err error) { c.t.Errorf("%s: %v", n.peer.ID, err) },
	})
	if err := l.client.Claims().Decode(claims); err != nil {
		c.t.Error(err)
	}
	n.compose(l, newUpstream(c.img, transport))
	n.life.Store(l)
	n.store.tell(func(d digest.Digest, proven bool) { c.told(n, l, d, proven) })
	transport.Handle(p2p.NewServer(l.client, backend{n, l}, slog.New(slog.DiscardHandler)).Serve)
	go l.client.Run(l.ctx)
}

// compose puts together where chunks come from, as proxy does for a repository.
func (n *node) compose(l *life, up chunk.Source) {
	near := chunk.NamedStore("disk", n.store)
	far := chunk.Named("upstream", chunk.Verify("upstream", interned{up, n.cluster.img}))
	held := interned{l.client.Held(repo.Host), n.cluster.img}
	report := func(err error) { n.cluster.t.Errorf("%s: %v", n.peer.ID, err) }
	l.own = chunk.Cache(chunk.NamedStore("disk", lendable{n.store, l.client.Claims()}), chunk.First(held, fetched{far, l.client.Claims()}), new(chunk.Flight), report)
	placed := interned{l.client.Source(repo, l.own), n.cluster.img}
	l.src = chunk.Cache(near, placed, &l.coming, report)
}

// lendable is the store as far as somebody vouches for what it holds: the rest is fetched once more, for all who ask.
type lendable struct {
	*store
	claims *p2p.Claims
}

func (s lendable) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if !s.claims.Of(repo.Host).Vouched(ref, s.Proven(ref.Blob)) {
		return nil, chunk.ErrNotFound
	}
	return s.store.Get(ctx, ref)
}

// fetched records what the upstream has sent.
type fetched struct {
	src    chunk.Source
	claims *p2p.Claims
}

func (f fetched) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := f.src.Get(ctx, ref)
	if err == nil {
		f.claims.Of(repo.Host).Own(ref, p)
	}
	return p, err
}

func (f fetched) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, f.src, refs, func(ref chunk.Ref, p []byte) error {
		f.claims.Of(repo.Host).Own(ref, p)
		return yield(ref, p)
	})
}

// pull reads the image as a runtime does.
func (n *node) pull() error {
	began := time.Now()
	l := n.now()
	g, ctx := errgroup.WithContext(l.ctx)
	g.SetLimit(atATime)
	for _, b := range n.cluster.img.blobs {
		g.Go(func() error { return n.read(ctx, l, b) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("%s: %w", n.peer.ID, err)
	}
	n.took = time.Since(began)
	return nil
}

// read reads a blob in order, by its digest.
func (n *node) read(ctx context.Context, l *life, b blob) error {
	cfg := chunk.BlobConfig{Window: readerWindow, Budget: l.budget, Proofs: n.store}
	if !n.members.View().Alone() {
		cfg.Run, cfg.Turns, cfg.Ahead, cfg.Kept = l.client.StripeSize(b.Size()), l.turns, l.client.Ahead(), n.store.has
	}
	r := chunk.NewBlob(b.Map, l.src, cfg).Open(ctx)
	defer r.Close()
	for i := 0; ; i++ {
		p, _, err := r.Next()
		switch {
		case err == io.EOF && i == b.Len():
			return nil
		case err != nil:
			return err
		case !bytes.Equal(p, n.cluster.img.bytes(b.At(i))):
			return fmt.Errorf("%s is not what the registry has", b.At(i))
		}
	}
}

// backend is what a node has for other members.
type backend struct {
	n *node
	l *life
}

var _ p2p.Backend = backend{}

func (b backend) Stored(ctx context.Context, _ string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, b.n.store, refs, yield)
}

func (b backend) Relay(ctx context.Context, _ string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, chunk.Coming(b.n.store, &b.l.coming), refs, yield)
}

func (b backend) Fetch(ctx context.Context, _ wire.Repository, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	key := tracker.StripeKey(refs[0].Blob, int(refs[0].Offset/b.l.client.StripeSize(refs[0].Total)))
	if owners := b.n.members.View().Owners(key, 1); len(owners) == 0 || owners[0].ID != b.n.peer.ID {
		b.n.elsewhere.Add(1)
	}
	return chunk.GetRun(ctx, b.l.own, refs, yield)
}

func (b backend) Proof(_ string, ref chunk.Ref, _ []byte) p2p.Proof {
	return p2p.Proof{Proven: b.n.store.Proven(ref.Blob)}
}

func (b backend) Map(_ context.Context, q wire.MapRequest) wire.Map {
	return wire.Map{Proven: b.n.store.Proven(q.Blob), Providers: b.l.providers.Of(q.Blob)}
}

func (b backend) Ask(context.Context, wire.Ask) (a wire.Answer, body []byte, err error) {
	return a, nil, errors.New("there is nothing to ask")
}

func (b backend) Learn(wire.Repository, []byte) error { return nil }

func (b backend) Forget(wire.Forget) error { return nil }

func (b backend) Order(context.Context, wire.Order, []byte) ([]byte, error) {
	return nil, errors.New("nobody commands this node")
}

func (b backend) Cause(err error) wire.Cause {
	if errors.Is(err, errUnreachable) {
		return wire.CauseUnreachable
	}
	return wire.CauseFailed
}
