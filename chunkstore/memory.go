package chunkstore

import (
	"container/list"
	"context"
	"sync"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Memory is a [chunk.Store] that keeps the most recently used chunks, up to a
// number of bytes. It keeps the very bytes it is given, without a copy.
type Memory struct {
	limit int64

	mu    sync.Mutex
	bytes int64 // sum of the chunks' sizes
	order *list.List
	at    map[chunk.Key]*list.Element
}

type memoryChunk struct {
	ref   chunk.Ref
	bytes []byte
}

// NewMemory returns an empty store of at most limit bytes. With 0 it keeps
// nothing.
func NewMemory(limit int64) *Memory {
	return &Memory{limit: limit, order: list.New(), at: make(map[chunk.Key]*list.Element)}
}

// Get implements [chunk.Source].
func (m *Memory) Get(_ context.Context, ref chunk.Ref) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.at[ref.Key()]
	if e == nil {
		return nil, chunk.ErrNotFound
	}
	c := e.Value.(memoryChunk)
	if c.ref.Size != ref.Size || c.ref.Total != ref.Total {
		return nil, chunk.ErrNotFound
	}
	m.order.MoveToFront(e)
	return c.bytes, nil
}

// Put implements [chunk.Store]. It never fails: a chunk larger than the store
// is not kept.
func (m *Memory) Put(_ context.Context, ref chunk.Ref, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(m.at[ref.Key()])
	if ref.Size > m.limit {
		return nil
	}
	m.at[ref.Key()] = m.order.PushFront(memoryChunk{ref, p})
	m.bytes += ref.Size
	for m.bytes > m.limit {
		m.remove(m.order.Back())
	}
	return nil
}

// Used returns how many bytes of chunks are kept.
func (m *Memory) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes
}

// Drop forgets every chunk of which match says so.
func (m *Memory) Drop(match func(chunk.Ref) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for e := m.order.Front(); e != nil; {
		next := e.Next()
		if match(e.Value.(memoryChunk).ref) {
			m.remove(e)
		}
		e = next
	}
}

// remove takes e out; m.mu is held. A nil e is ignored.
func (m *Memory) remove(e *list.Element) {
	if e == nil {
		return
	}
	c := m.order.Remove(e).(memoryChunk)
	delete(m.at, c.ref.Key())
	m.bytes -= c.ref.Size
}
