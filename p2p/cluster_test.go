package p2p_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/p2ptest"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const host = "registry.example"

// linkOf returns a link of a rate in bytes per second.
var linkOf = p2ptest.NewLink

var app = wire.Repository{Host: host, Name: "org/app"}

// registry is the upstream of all nodes.
type registry struct {
	link *p2ptest.Link

	mu      sync.Mutex
	blobs   map[digest.Digest][]byte
	sent    int64 // bytes
	waiting int   // who is being sent something
	stalled chan struct{}
	err     error
}

func (r *registry) add(p []byte) *chunk.Map {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(p)
	r.blobs[d] = p
	m, err := chunk.Grid(d, int64(len(p)))
	if err != nil {
		panic(err)
	}
	return m
}

// stall makes the registry send nothing until the function it returns is called.
func (r *registry) stall() (goOn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := make(chan struct{})
	r.stalled = c
	return func() { close(c) }
}

func (r *registry) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *registry) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent
}

func (r *registry) readers() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

func (r *registry) count(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting += n
}

func (r *registry) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	r.count(1)
	defer r.count(-1)
	r.mu.Lock()
	stalled, err, blob := r.stalled, r.err, r.blobs[ref.Blob]
	r.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	if blob == nil {
		return nil, chunk.ErrNotFound
	}
	if err := r.link.Pass(ctx, int(ref.Size)); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent += ref.Size
	return blob[ref.Offset : ref.Offset+ref.Size], nil
}

// memory is a store.
type memory struct {
	mu     sync.Mutex
	chunks map[chunk.Key][]byte
}

func (m *memory) Get(_ context.Context, ref chunk.Ref) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.chunks[ref.Key()]; ok {
		return p, nil
	}
	return nil, chunk.ErrNotFound
}

func (m *memory) Put(_ context.Context, ref chunk.Ref, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chunks[ref.Key()] = p
	return nil
}

func (m *memory) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.chunks)
}

// node is a member: a backend, and what asks others.
type node struct {
	id        tracker.ID
	client    *p2p.Client
	members   *tracker.Static
	providers *tracker.Providers
	store     *memory
	own, read chunk.Source
	coming    chunk.Flight // to whoever reads

	mu     sync.Mutex
	proven map[digest.Digest]bool
	links  map[chunk.Key]chunk.Link // after chunks, of what is proven
	facts  []byte
	forgot []wire.Forget
	fetchs int
	maps   int
	answer func(ctx context.Context, q wire.Ask) (wire.Answer, []byte, error)
}

var _ p2p.Backend = (*node)(nil)

func (n *node) Stored(ctx context.Context, _ string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, n.store, refs, yield)
}

func (n *node) Relay(ctx context.Context, _ string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, chunk.Coming(n.store, &n.coming), refs, yield)
}

func (n *node) Fetch(ctx context.Context, _ wire.Repository, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	n.mu.Lock()
	n.fetchs++
	n.mu.Unlock()
	return chunk.GetRun(ctx, n.own, refs, yield)
}

func (n *node) fetches() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fetchs
}

func (n *node) Proven(d digest.Digest) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proven[d]
}

func (n *node) Proof(_ string, ref chunk.Ref, _ []byte) p2p.Proof {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := chunk.Key{Blob: ref.Blob, Offset: ref.Offset - chunk.Size}
	return p2p.Proof{Proven: n.proven[ref.Blob], Before: n.links[before], After: n.links[ref.Key()]}
}

// hash makes a node have a blob, hashed as a reader does, which leaves links.
func (n *node) hash(m *chunk.Map, p []byte) {
	n.prove(m.Blob())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = make(map[chunk.Key]chunk.Link)
	prefix := chunk.NewPrefix(m.Blob())
	for i := range m.Len() - 1 {
		ref := m.At(i)
		_, _ = prefix.Write(p[ref.Offset : ref.Offset+ref.Size])
		n.links[ref.Key()] = prefix.Link()
	}
	for _, ref := range refsOf(m) {
		_ = n.store.Put(context.Background(), ref, p[ref.Offset:ref.Offset+ref.Size])
	}
}

func (n *node) prove(d digest.Digest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.proven[d] = true
}

func (n *node) mapped() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.maps
}

func (n *node) Map(_ context.Context, q wire.MapRequest) wire.Map {
	n.mu.Lock()
	n.maps++
	n.mu.Unlock()
	return wire.Map{Proven: n.Proven(q.Blob), Providers: n.providers.Of(q.Blob)}
}

func (n *node) Ask(ctx context.Context, q wire.Ask) (wire.Answer, []byte, error) {
	if n.answer == nil {
		return wire.Answer{}, nil, chunk.ErrNotFound
	}
	return n.answer(ctx, q)
}

func (n *node) Learn(_ wire.Repository, facts []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.facts = facts
	return nil
}

func (n *node) learned() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return string(n.facts)
}

func (n *node) forgotten() []wire.Forget {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.forgot)
}

func (n *node) Forget(q wire.Forget) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgot = append(n.forgot, q)
	return nil
}

func (n *node) Order(_ context.Context, o wire.Order, says []byte) ([]byte, error) {
	if o.Kind != "echo" {
		return nil, errors.New("there is no such order")
	}
	return append([]byte(n.id+" "), says...), nil
}

func (n *node) Cause(err error) wire.Cause {
	switch {
	case errors.Is(err, chunk.ErrDenied):
		return wire.CauseDenied
	case errors.Is(err, errUnreachable):
		return wire.CauseUnreachable
	}
	return wire.CauseFailed
}

var errUnreachable = errors.New("the upstream cannot be reached")

// state returns what a node says of another.
func (n *node) state(of tracker.ID) p2p.PeerStatus {
	for _, s := range n.client.Peers().Status() {
		if s.ID == of {
			return s
		}
	}
	return p2p.PeerStatus{State: "unknown"}
}

// recorded records what comes from the upstream.
type recorded struct {
	chunk.Source
	n *node
}

func (r recorded) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := r.Source.Get(ctx, ref)
	if err == nil {
		r.n.client.Claims().Of(host).Own(ref, p)
	}
	return p, err
}

// cluster is nodes on a network, and their upstream. It is for one bubble.
type cluster struct {
	t        *testing.T
	net      *p2ptest.Network
	registry *registry
	peers    []tracker.Peer
	nodes    map[tracker.ID]*node
	reported []error
	mu       sync.Mutex
}

// newCluster starts nodes with these IDs. With change a node's settings may be
// other than usual.
func newCluster(t *testing.T, change func(*p2p.Config), ids ...tracker.ID) *cluster {
	c := &cluster{
		t: t, net: p2ptest.NewNetwork(), nodes: make(map[tracker.ID]*node),
		registry: &registry{blobs: make(map[digest.Digest][]byte)},
	}
	for _, id := range ids {
		c.peers = append(c.peers, tracker.Peer{ID: id, Name: "node-" + string(id), Weight: 1})
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, p := range c.peers {
		n := c.start(p, change)
		running.Go(func() { n.client.Run(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		c.net.Close()
	})
	c.net.SetLatency(time.Millisecond)
	return c
}

func (c *cluster) start(self tracker.Peer, change func(*p2p.Config)) *node {
	n := &node{
		id: self.ID, members: tracker.NewStatic(tracker.NewView(self, c.peers)), providers: tracker.NewProviders(1000, time.Hour),
		store: &memory{chunks: make(map[chunk.Key][]byte)}, proven: make(map[digest.Digest]bool),
	}
	cfg := p2p.Config{
		Transport: c.net.Node(self.ID), Members: n.members, Signer: p2ptest.Signer(self.ID), Providers: n.providers,
		Random: rand.New(rand.NewPCG(1, uint64(len(c.nodes)))),
		Report: func(err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.reported = append(c.reported, err)
		},
	}
	if change != nil {
		change(&cfg)
	}
	n.client = p2p.NewClient(cfg)
	n.own = chunk.Cache(n.store, chunk.First(n.client.Held(host), chunk.Named("upstream", recorded{c.registry, n})), new(chunk.Flight), nil)
	n.read = chunk.Cache(n.store, n.client.Source(app, n.own), &n.coming, nil)
	c.net.Node(self.ID).Handle(p2p.NewServer(n.client, n, slog.New(slog.DiscardHandler)).Serve)
	c.nodes[self.ID] = n
	return n
}

// reports returns what nodes have reported.
func (c *cluster) reports() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.reported)
}

// content returns bytes that do not shrink.
func content(size int, seed uint64) []byte {
	p := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	random.Read(p)
	return p
}

// blob adds a blob to the registry whose first stripes are owned by these nodes.
func (c *cluster) blob(size int, owners ...tracker.ID) *chunk.Map {
	c.t.Helper()
	p := content(size, uint64(size)+uint64(len(c.registry.blobs))<<8)
	for range 10000 {
		if c.owned(digest.FromBytes(p), owners) {
			return c.registry.add(p)
		}
		p[0]++
		if p[0] == 0 {
			p[1]++
		}
	}
	c.t.Fatal("no such blob was found")
	return nil
}

func (c *cluster) owned(d digest.Digest, owners []tracker.ID) bool {
	view := tracker.NewView(c.peers[0], c.peers)
	for i, id := range owners {
		if view.Owners(tracker.StripeKey(d, i), 1)[0].ID != id {
			return false
		}
	}
	return true
}

func refsOf(m *chunk.Map) (refs []chunk.Ref) {
	for i := range m.Len() {
		refs = append(refs, m.At(i))
	}
	return refs
}

// get reads a blob from a source and says what is wrong with what came.
func (c *cluster) get(ctx context.Context, src chunk.Source, m *chunk.Map) error {
	c.registry.mu.Lock()
	want := c.registry.blobs[m.Blob()]
	c.registry.mu.Unlock()
	refs := refsOf(m)
	next := 0
	err := chunk.GetRun(ctx, src, refs, func(ref chunk.Ref, p []byte) error {
		if next >= len(refs) || ref.Offset != refs[next].Offset {
			return fmt.Errorf("chunk %s came as number %d", ref, next)
		}
		next++
		if !bytes.Equal(p, want[ref.Offset:ref.Offset+ref.Size]) {
			return fmt.Errorf("chunk %s has other bytes", ref)
		}
		return nil
	})
	if err == nil && next != len(refs) {
		err = fmt.Errorf("%d of %d chunks came", next, len(refs))
	}
	return err
}

// mustGet reads a blob as a node's client does, and returns how long it took.
func (c *cluster) mustGet(id tracker.ID, m *chunk.Map) time.Duration {
	c.t.Helper()
	began := time.Now()
	if err := c.get(c.t.Context(), c.nodes[id].read, m); err != nil {
		c.t.Fatalf("node %s: %v", id, err)
	}
	return time.Since(began)
}
