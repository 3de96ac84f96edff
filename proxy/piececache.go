package proxy

import (
	linked "container/list"
	"context"
	"maps"
	"sync"

	"github.com/opencontainers/go-digest"
)

// keptPieces bounds the pieces that are kept in memory, in bytes.
const keptPieces = 32 << 20

// pieceKey names a piece as a host has sent it.
type pieceKey struct {
	host   string
	blob   digest.Digest
	offset int64
}

// piece is one that is there, or is on its way.
type piece struct {
	key  pieceKey
	done chan struct{} // closed when it is there, or will not come
	// Written before done is closed.
	bytes  []byte
	source string // who gave it, see [chunk.SetOrigin]; "" if it is not one alone
	err    error
}

// here reports whether nobody has to wait for a piece.
func (p *piece) here() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait returns a piece's bytes when they are there.
func (p *piece) wait(ctx context.Context) ([]byte, error) {
	select {
	case <-p.done:
		return p.bytes, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pieceCache keeps the pieces that were used last, and knows those that are on their
// way, so that nobody fetches them again. The zero value is ready to use.
type pieceCache struct {
	mu     sync.Mutex
	coming map[pieceKey]*piece
	all    map[pieceKey]*linked.Element
	order  linked.List // of *piece, the one that was used last is the first
	size   int
	misses []pieceKey // that somebody has had to wait for, the latest last
}

// find returns a piece that is there, or on its way; or nil.
func (c *pieceCache) find(k pieceKey) *piece {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.all[k]; e != nil {
		c.order.MoveToFront(e)
		return e.Value.(*piece)
	}
	return c.coming[k]
}

// has reports whether a piece is there, or on its way.
func (c *pieceCache) has(k pieceKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[k] != nil || c.coming[k] != nil
}

// maxMisses bounds the misses that are remembered.
const maxMisses = 256

// miss takes note of a piece that somebody has to wait for, and returns how many other
// ones within reach, in bytes, there have been lately.
func (c *pieceCache) miss(k pieceKey, reach int64) (near int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.misses {
		if m.host == k.host && m.blob == k.blob && max(m.offset-k.offset, k.offset-m.offset) <= reach {
			near++
		}
	}
	if len(c.misses) == maxMisses {
		c.misses = append(c.misses[:0], c.misses[maxMisses/2:]...)
	}
	c.misses = append(c.misses, k)
	return near
}

// claim takes it on to fetch pieces from k on, up to byte end and up to the first one
// that is there or on its way: there is none for the caller if that is k itself.
// Each is to be settled.
func (c *pieceCache) claim(k pieceKey, end int64) (run []*piece) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; k.offset < end; k.offset += pieceSize {
		if c.all[k] != nil || c.coming[k] != nil {
			return run
		}
		p := &piece{key: k, done: make(chan struct{})}
		if c.coming == nil {
			c.coming = make(map[pieceKey]*piece)
		}
		c.coming[k] = p
		run = append(run, p)
	}
	return run
}

// settle says that a piece is there, or will not come.
func (c *pieceCache) settle(p *piece, b []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := c.coming[p.key] == p
	if wanted {
		delete(c.coming, p.key)
	}
	p.bytes, p.err = b, err
	close(p.done)
	if err != nil || !wanted {
		return
	}
	if c.all == nil {
		c.all = make(map[pieceKey]*linked.Element)
	}
	c.all[p.key] = c.order.PushFront(p)
	for c.size += len(b); c.size > keptPieces; {
		last := c.order.Remove(c.order.Back()).(*piece)
		delete(c.all, last.key)
		c.size -= len(last.bytes)
	}
}

// drop forgets all pieces of a blob, which has turned out wrong: who waits for one that is on its way gets it, and nobody after that.
func (c *pieceCache) drop(host string, d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := func(k pieceKey) bool { return k.host == host && k.blob == d }
	maps.DeleteFunc(c.coming, func(k pieceKey, _ *piece) bool { return of(k) })
	maps.DeleteFunc(c.all, func(k pieceKey, e *linked.Element) bool {
		if of(k) {
			c.size -= len(c.order.Remove(e).(*piece).bytes)
		}
		return of(k)
	})
}

// chunk returns the bytes from k to end if all of its pieces are there, and who gave them, "" if it
// is not one alone.
func (c *pieceCache) chunk(k pieceKey, end int64) (b []byte, source string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := k
	for ; at.offset < end; at.offset += pieceSize {
		if c.all[at] == nil {
			return nil, "", false
		}
	}
	b = make([]byte, 0, end-k.offset)
	source = c.all[k].Value.(*piece).source
	for at = k; at.offset < end; at.offset += pieceSize {
		p := c.all[at].Value.(*piece)
		b = append(b, p.bytes...)
		if p.source != source {
			source = ""
		}
	}
	return b, source, int64(len(b)) == end-k.offset
}

// yield lets the pieces from k to end be the next ones that are forgotten: the chunk that
// they are is stored, and others are all that there is of theirs.
func (c *pieceCache) yield(k pieceKey, end int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; k.offset < end; k.offset += pieceSize {
		if e := c.all[k]; e != nil {
			c.order.MoveToBack(e)
		}
	}
}
