package rebuild

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/gzip"
)

// readPatience is for how long who reads a layer waits for older ones to be looked at, and expectPatience for how long nothing is
// expected meanwhile: within that layers of some 2 GB are.
const (
	readPatience   = 2 * time.Second
	expectPatience = 15 * time.Second
)

// OldLayer is an older layer, of which all is here.
type OldLayer struct {
	Digest digest.Digest
	Open   func(ctx context.Context) (Layer, error)
}

// Older are older layers, whose chunks are found by their digests. A nil one has none.
type Older struct {
	ready chan struct{} // closed when all were looked at
	began time.Time

	spans gzip.Spans // of those in gzip

	mu    sync.Mutex
	where map[toc.Digest]oldChunk
	maps  []oldMap // of those that were looked at
}

// ReadLayer is an older layer that was read by its chunks, and is not here as a whole. Chunks of it that are kept by themselves
// are found where all such are, and others may be like them.
type ReadLayer struct {
	Digest digest.Digest
	Map    func(ctx context.Context) (*cdc.Map, error)
	Has    func(c *cdc.Chunk) bool
	Read   func(c *cdc.Chunk) []byte // nil if it has not got it after all
}

// oldChunk is a chunk of an older layer.
type oldChunk struct {
	layer *oldTar
	chunk int
}

type oldTar struct {
	OldLayer
	*contents
}

// LookAt looks at older layers, with what is kept of them or else by reading them, one at a time. It returns at once.
func (e *Edge) LookAt(all []OldLayer, read []ReadLayer, kept Shelves) *Older {
	o := &Older{ready: make(chan struct{}), began: time.Now(), where: make(map[toc.Digest]oldChunk)}
	e.start(func() {
		defer close(o.ready)
		o.addRead(e.ctx, read) // which takes no time
		for _, old := range all[:min(len(all), maxOld)] {
			if c, err := e.look(old, kept); err == nil {
				o.add(&oldTar{old, c})
			}
		}
	})
	return o
}

func (o *Older) addRead(ctx context.Context, layers []ReadLayer) {
	for _, l := range layers {
		if len(o.maps) == maxOld {
			return
		}
		if m, err := l.Map(ctx); err == nil && len(m.Chunks) <= mostLike {
			o.addMap(oldMap{l.Digest, m, l.Has, l.chunks(m)})
		}
	}
}

func (o *Older) addMap(m oldMap) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.maps = append(o.maps, m)
}

// looked returns the maps of those that were looked at.
func (o *Older) looked() []oldMap {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.maps
}

// chunks reads chunks of a map of the layer.
func (l ReadLayer) chunks(m *cdc.Map) func(context.Context, []int) ([]byte, error) {
	return func(_ context.Context, chunks []int) (all []byte, err error) {
		for _, i := range chunks {
			p := l.Read(&m.Chunks[i])
			if p == nil {
				return nil, chunk.ErrNotFound
			}
			all = append(all, p...)
		}
		return all, nil
	}
}

// look looks at one layer, in its turn: many layers of an image may have the same older ones.
func (e *Edge) look(old OldLayer, kept Shelves) (*contents, error) {
	e.looking.Lock()
	defer e.looking.Unlock()
	if err := e.ctx.Err(); err != nil {
		return nil, err
	}
	return kept.look(e.ctx, old)
}

// look returns what a layer's contents are read by.
func (s Shelves) look(ctx context.Context, old OldLayer) (*contents, error) {
	c, unreadable := s.contents(ctx, old.Digest)
	if c != nil {
		return c, nil
	}
	if unreadable != "" {
		return nil, &NoneError{"content map", unreadable}
	}
	layer, err := old.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer layer.Release()
	if c, err = survey(ctx, layer); err != nil {
		return nil, err
	}
	return c, s.keep(ctx, old.Digest, c)
}

func (o *Older) add(t *oldTar) {
	if x, ok := t.access.(gzipTar); ok {
		x.spans = &o.spans
		t.access = x
	}
	o.addMap(oldMap{t.Digest, t.chunks, func(*cdc.Chunk) bool { return true }, t.readChunks})
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range t.chunks.Chunks {
		c := &t.chunks.Chunks[i]
		if _, known := o.where[c.Digest]; c.Inline == nil && !known {
			o.where[c.Digest] = oldChunk{t, i}
		}
	}
}

// readChunks returns chunks, given by their numbers in ascending order, one after the other.
func (t *oldTar) readChunks(ctx context.Context, chunks []int) ([]byte, error) {
	layer, err := t.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer layer.Release()
	return t.read(layer, chunks)
}

// wait waits until all layers were looked at, or for a little.
func (o *Older) wait(ctx context.Context) {
	if o == nil {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, o.began.Add(readPatience))
	defer cancel()
	select {
	case <-o.ready:
	case <-ctx.Done():
	}
}

// looking returns for how long layers have been looked at, 0 if they were.
func (o *Older) looking() time.Duration {
	if o == nil {
		return 0
	}
	select {
	case <-o.ready:
		return 0
	default:
		return max(time.Since(o.began), 1)
	}
}

// has reports whether an older layer has a chunk.
func (o *Older) has(d toc.Digest) bool {
	if o == nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.where[d]
	return ok
}

func (o *Older) find(d toc.Digest) oldChunk {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.where[d]
}

// forget forgets a chunk that is not what it should be, or whose layer has gone.
func (o *Older) forget(d toc.Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.where, d)
}

// read gives each of some chunks of m, in order, to take; nil if it cannot be read.
func (o *Older) read(ctx context.Context, m *cdc.Map, chunks []*arrival, take func(a *arrival, p []byte)) {
	open := make(map[*oldTar]Layer)
	defer func() {
		for _, l := range open {
			l.Release()
		}
	}()
	for _, a := range chunks {
		c := &m.Chunks[a.chunk]
		p, err := readOld(ctx, open, o.find(c.Digest), c)
		if err != nil {
			o.forget(c.Digest)
			p = nil
		}
		take(a, p)
	}
}

func readOld(ctx context.Context, open map[*oldTar]Layer, at oldChunk, c *cdc.Chunk) ([]byte, error) {
	if at.layer == nil {
		return nil, chunk.ErrNotFound
	}
	layer, ok := open[at.layer]
	if !ok {
		var err error
		if layer, err = at.layer.Open(ctx); err != nil {
			return nil, err
		}
		open[at.layer] = layer
	}
	old := &at.layer.chunks.Chunks[at.chunk]
	tar, err := at.layer.open(layer, old.Offset, old.Offset+old.Size)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	p := make([]byte, old.Size)
	if _, err := io.ReadFull(tar, p); err != nil {
		return nil, err
	}
	if !c.Fits(p) {
		return nil, errOther
	}
	return p, nil
}
