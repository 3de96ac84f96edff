package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
)

const (
	// atOnce is for how many requests offers are opened and contents inflated at a time, and maxWaiting how many
	// more may wait for that, for as long as waitFor.
	atOnce     = 2
	maxWaiting = 64
	waitFor    = 10 * time.Second
	// maxIndex is how large an index may be, in bytes: that of some 28 GB.
	maxIndex = 256 << 20
)

// Layer is the bytes of a layer, all of which are here and have matched its digest.
type Layer struct {
	io.ReaderAt
	Size    int64
	Release func() // is to be called when it has been read
}

// HubConfig is what a [Hub] is made of. All fields are required.
type HubConfig struct {
	// Open returns a layer, to be read for as long as ctx lives.
	Open func(ctx context.Context, layer digest.Digest) (Layer, error)
	Shelves
	// Offers keeps what is of the kind OfferKind.
	Offers Shelf
	// Report is told of layers that could not be looked at.
	Report func(error)
}

// Hub makes maps and offers of the layers that a node has, and gives out their contents. Who may have
// these is for its user to know. It is safe for concurrent use.
type Hub struct {
	cfg    HubConfig
	turns  *semaphore.Weighted
	recent recent
	// A map is there soon, and whoever reads a few files waits for nothing else.
	maps, offers *queue

	mu      sync.Mutex
	waiting int // for their turn
	counts  Counts
}

// NewHub returns a hub that has made nothing.
func NewHub(cfg HubConfig) *Hub {
	h := &Hub{cfg: cfg, turns: semaphore.NewWeighted(atOnce)}
	h.maps = newQueue("content map", mapPace, h.makeMap)
	h.offers = newQueue("offer", offerPace, h.makeOffer)
	return h
}

// NoneError says that there is no offer of a layer, or no map, and will not be.
type NoneError struct{ What, Reason string }

func (e *NoneError) Error() string { return "there is no " + e.What + " of the layer: " + e.Reason }

// LaterError says that something is to be asked for again.
type LaterError struct {
	After  int // seconds
	Reason string
}

func (e *LaterError) Error() string { return e.Reason }

// ErrQuery says that a request names chunks in a way that it may not.
var ErrQuery = errors.New("these chunks cannot be asked for")

// Counts is what a hub has done.
type Counts struct {
	Made    int64   `json:"made"`    // offers
	None    int64   `json:"none"`    // layers that there are no offers of
	Failed  int64   `json:"failed"`  // layers that could not be looked at
	Waiting int     `json:"waiting"` // layers that are to be looked at
	Seconds float64 `json:"seconds"` // that looking at layers took
	Sent    int64   `json:"sent"`    // bytes of contents, as they are sent
}

// Counts returns what the hub has done.
func (h *Hub) Counts() Counts {
	h.mu.Lock()
	c := h.counts
	h.mu.Unlock()
	c.Waiting = h.maps.waiting(h.offers)
	return c
}

// Ahead has the map and the offer of a layer of size bytes made before anybody asks for them, when nobody waits for another
// one. If too many are to be made it is not.
func (h *Hub) Ahead(layer digest.Digest, size int64) {
	if size >= Least {
		h.maps.enqueue(layer, size, false)
		h.offers.enqueue(layer, size, false)
	}
}

// Offer returns the offer of a layer of size bytes, as it is sent. The error is a [*NoneError], or a [*LaterError]
// while it is being made; else it could not be made, or ctx has ended.
func (h *Hub) Offer(ctx context.Context, layer digest.Digest, size int64) ([]byte, error) {
	m, err := h.find(ctx, layer, size, h.offers, func(m *made) bool { return m.offer != nil || m.none != "" })
	if err != nil {
		return nil, err
	}
	if m.none != "" {
		return nil, &NoneError{h.offers.what, m.none}
	}
	return m.offer, nil
}

// Map returns the content map of a layer of size bytes, as it is sent. The error is one of Offer.
func (h *Hub) Map(ctx context.Context, layer digest.Digest, size int64) ([]byte, error) {
	m, err := h.contents(ctx, layer, size)
	if err != nil {
		return nil, err
	}
	return m.packed, nil
}

// Dictionary are chunks of an older layer that who asks for contents has, and may read.
type Dictionary struct {
	Name   digest.Digest // of the layer
	Layer  Layer
	Chunks string // as of [FormatChunks]
}

// Contents returns the chunks of a layer that a query names, as they are sent: with a dictionary, if that can be had at once;
// it may be nil. The error is one of Offer, or wraps [ErrQuery]; else it is one of the layer, or ctx has ended.
func (h *Hub) Contents(ctx context.Context, name digest.Digest, layer Layer, query string, d *Dictionary) ([]byte, error) {
	m, err := h.contents(ctx, name, layer.Size)
	if err != nil {
		return nil, err
	}
	chunks, err := ParseChunks(query, m.chunks)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQuery, err)
	}
	leave, err := h.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	p, err := m.read(layer, chunks)
	if err != nil {
		if ctx.Err() == nil {
			h.recent.forget(name) // if it is what was made that is wrong, it is read again
		}
		return nil, fmt.Errorf("layer %s: %w", name, err)
	}
	p, err = compress(p, h.words(ctx, d))
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", name, err)
	}
	h.count(func(c *Counts) { c.Sent += int64(len(p)) })
	return p, nil
}

// words returns a dictionary for whoever has a turn, nil if it is not to be had at once: an answer without it is as right.
func (h *Hub) words(ctx context.Context, d *Dictionary) []byte {
	if d == nil {
		return nil
	}
	m := h.open(ctx, d.Name)
	if m.contents == nil {
		if m.unreadable == "" && d.Layer.Size >= Least {
			h.maps.enqueue(d.Name, d.Layer.Size, false) // for the next time
		}
		return nil
	}
	chunks, err := ParseChunks(d.Chunks, m.chunks)
	if err != nil {
		return nil
	}
	p, err := m.read(d.Layer, chunks)
	if err != nil {
		return nil
	}
	return p
}

// contents returns what the contents of a layer of size bytes are read by, once that is made.
func (h *Hub) contents(ctx context.Context, layer digest.Digest, size int64) (*contents, error) {
	m, err := h.find(ctx, layer, size, h.maps, func(m *made) bool { return m.contents != nil || m.unreadable != "" })
	if err != nil {
		return nil, err
	}
	if m.unreadable != "" {
		return nil, &NoneError{h.maps.what, m.unreadable}
	}
	return m.contents, nil
}

// find returns what was made of a layer of size bytes, once it suffices, which a queue sees to.
func (h *Hub) find(ctx context.Context, layer digest.Digest, size int64, by *queue, suffices func(*made) bool) (*made, error) {
	if size < Least {
		return nil, &NoneError{by.what, fmt.Sprintf("it has less than %d bytes", Least)}
	}
	m, err := h.known(ctx, layer)
	if err != nil || suffices(m) {
		return m, err
	}
	if err := by.await(ctx, layer, size); err != nil {
		return nil, err
	}
	if m := h.recent.get(layer); m != nil && suffices(m) {
		return m, nil
	}
	return nil, &LaterError{1, "the " + by.what + " of the layer was made, and has made room for others since"}
}

// known returns what was made of a layer, which may be nothing.
func (h *Hub) known(ctx context.Context, layer digest.Digest) (*made, error) {
	if m := h.recent.get(layer); m != nil {
		return m, nil
	}
	leave, err := h.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return h.open(ctx, layer), nil
}

// open is known for whoever has a turn.
func (h *Hub) open(ctx context.Context, layer digest.Digest) *made {
	if m := h.recent.get(layer); m != nil {
		return m
	}
	m := h.kept(ctx, layer)
	if m.contents != nil || m.unreadable != "" {
		h.recent.add(layer, m)
	}
	return m
}

// turn waits for a turn to do something for a request that takes memory and CPU.
func (h *Hub) turn(ctx context.Context) (leave func(), err error) {
	if !h.wait(1) {
		return nil, errBusy
	}
	defer h.wait(-1)
	within, cancel := context.WithTimeout(ctx, waitFor)
	defer cancel()
	if h.turns.Acquire(within, 1) == nil {
		return func() { h.turns.Release(1) }, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, errBusy
}

var errBusy = &LaterError{1, "this node is answering as many requests for layers' contents as it can"}

// wait takes a place among those who wait, or gives it back.
func (h *Hub) wait(n int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n > 0 && h.waiting >= maxWaiting {
		return false
	}
	h.waiting += n
	return true
}

func (h *Hub) count(add func(*Counts)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	add(&h.counts)
}

// Run makes maps and offers, one of each at a time, until ctx ends.
func (h *Hub) Run(ctx context.Context) {
	var running sync.WaitGroup
	running.Go(func() { h.maps.run(ctx) })
	h.offers.run(ctx)
	running.Wait()
}
