package rebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/recipe"
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
	// Offers keeps what was made, and Indexes what package toc/gzip reads layers by: others may
	// keep such of their own there.
	Offers, Indexes Shelf
	// Report is told of layers that could not be looked at.
	Report func(error)
}

// Hub makes offers of the layers that a node has, and gives out their contents. Who may have
// these is for its user to know. It is safe for concurrent use.
type Hub struct {
	cfg    HubConfig
	turns  *semaphore.Weighted
	wake   chan struct{} // has something when there may be work
	recent recent

	mu      sync.Mutex
	waiting int                    // for their turn
	jobs    map[digest.Digest]*job // those that wait, and the one that is being done
	asked   []*job                 // those that wait because of a request
	ahead   []*job                 // and the others
	doing   *job
	counts  Counts
}

// NewHub returns a hub that has made nothing.
func NewHub(cfg HubConfig) *Hub {
	return &Hub{cfg: cfg, turns: semaphore.NewWeighted(atOnce), wake: make(chan struct{}, 1), jobs: make(map[digest.Digest]*job)}
}

// NoneError says that there is no offer of a layer, and will not be.
type NoneError struct{ Reason string }

func (e *NoneError) Error() string { return "there is no offer of the layer: " + e.Reason }

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
	defer h.mu.Unlock()
	c := h.counts
	c.Waiting = len(h.jobs)
	return c
}

// Offer returns the offer of a layer of size bytes, as it is sent. The error is a [*NoneError], or a [*LaterError]
// while it is being made; else it could not be made, or ctx has ended.
func (h *Hub) Offer(ctx context.Context, layer digest.Digest, size int64) ([]byte, error) {
	m, err := h.find(ctx, layer, size)
	if err != nil {
		return nil, err
	}
	return m.offer, nil
}

// Contents returns the chunks of a layer that a query names, as they are sent. The error is one of Offer, or wraps
// [ErrQuery]; else it is one of the layer, or ctx has ended.
func (h *Hub) Contents(ctx context.Context, name digest.Digest, layer Layer, query string) ([]byte, error) {
	m, err := h.find(ctx, name, layer.Size)
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
	p = packer().EncodeAll(p, nil)
	h.count(func(c *Counts) { c.Sent += int64(len(p)) })
	return p, nil
}

// find returns the offer of a layer of size bytes, once it is made.
func (h *Hub) find(ctx context.Context, layer digest.Digest, size int64) (*made, error) {
	if size < Least {
		return nil, &NoneError{fmt.Sprintf("it has less than %d bytes", Least)}
	}
	m, err := h.known(ctx, layer)
	if m == nil && err == nil {
		m, err = h.await(ctx, layer, size)
	}
	if err != nil {
		return nil, err
	}
	if m.none != "" {
		return nil, &NoneError{m.none}
	}
	return m, nil
}

// known returns what was made of a layer, or nil.
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
	if m != nil {
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

// Run makes offers, one at a time, until ctx ends.
func (h *Hub) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if j := h.take(); j != nil {
			err := h.do(ctx, j.layer)
			if err != nil && ctx.Err() == nil {
				h.cfg.Report(err)
			}
			h.finish(j, err)
			continue
		}
		select {
		case <-ctx.Done():
		case <-h.wake:
		}
	}
}

// do makes an offer, unless that was done before.
func (h *Hub) do(ctx context.Context, name digest.Digest) error {
	if h.open(ctx, name) != nil {
		return nil
	}
	layer, err := h.cfg.Open(ctx, name)
	if err != nil {
		return err
	}
	defer layer.Release()
	began := time.Now()
	m, err := h.make(ctx, name, layer)
	h.count(func(c *Counts) {
		c.Seconds += time.Since(began).Seconds()
		switch {
		case err != nil:
			c.Failed++
		case m.none != "":
			c.None++
		default:
			c.Made++
		}
	})
	if err != nil {
		return fmt.Errorf("layer %s: %w", name, err)
	}
	h.recent.add(name, m)
	return nil
}

// make finds out all of a layer, and keeps it.
func (h *Hub) make(ctx context.Context, name digest.Digest, layer Layer) (*made, error) {
	var how *recipe.Recipe
	if o, err := h.keptOffer(ctx, name); err == nil { // and it is the index that was lost
		how = o.Recipe
	}
	m, err := makeOffer(ctx, layer, layer.Size, how)
	if err == nil {
		err = h.keep(ctx, name, m)
	}
	if err == nil || ctx.Err() != nil {
		return m, err
	}
	reason, never := noneBecause(err)
	if !never {
		return nil, err
	}
	h.cfg.Offers.Put(ctx, name, append([]byte{isNone}, reason...))
	return &made{none: reason}, nil
}

// keep keeps an offer and its index, of whose table no more is needed then.
func (h *Hub) keep(ctx context.Context, name digest.Digest, m *made) error {
	var b bytes.Buffer
	if err := m.index.Encode(&b); err != nil {
		return err
	}
	if b.Len() > maxIndex {
		return fmt.Errorf("%w: an index of %d bytes", toc.ErrLimit, b.Len())
	}
	h.cfg.Indexes.Put(ctx, name, b.Bytes())
	h.cfg.Offers.Put(ctx, name, append([]byte{isOffer}, m.offer...))
	m.index = pointsOf(m.index)
	return nil
}
