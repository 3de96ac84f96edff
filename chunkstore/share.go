package chunkstore

import (
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// sharer is chunk i of b.
type sharer struct {
	b *blob
	i int
}

func (c sharer) ref() chunk.Ref { return c.b.ref(c.i) }

// share is the chunks of one digest whose bytes are on disk once, guarded by Disk.mu. They
// count once as long as one of them is there. A chunk is in it from before it is cloned, so
// that whatever becomes of the others meanwhile counts right.
type share map[sharer]struct{}

// join has c, which was counted, count no more than src does, whose bytes it shares. s.mu is held.
func (s *Disk) join(src, c sharer) {
	all := src.b.shares[src.i]
	if all == nil {
		all = share{src: {}}
		src.b.shares[src.i] = all
	}
	all[c] = struct{}{}
	c.b.shares[c.i] = all
	s.used -= c.ref().Size
	s.shared += c.ref().Size
}

// uncount has a chunk that goes count no more, and returns how many bytes that frees: none if
// others share them, who are found by their digest from then on. s.mu is held.
func (s *Disk) uncount(c sharer) (freed int64) {
	ref := c.ref()
	all := c.b.shares[c.i]
	delete(all, c)
	delete(c.b.shares, c.i)
	s.unlist(c)
	if len(all) == 0 {
		s.used -= ref.Size
		return ref.Size
	}
	s.shared -= ref.Size
	for other := range all {
		if other.b.have.has(other.i) {
			s.fresh[other.b.sums.at(other.i).digest] = other.ref()
			other.b.dirty[other.i] = time.Now()
			break
		}
	}
	return 0
}

// unlist has a chunk not be found by its digest any more, if the index does not list it. s.mu is held.
func (s *Disk) unlist(c sharer) {
	if raw := c.b.sums.at(c.i).digest; s.fresh[raw].Key() == c.ref().Key() {
		delete(s.fresh, raw)
	}
}

// uncountAll is uncount for all that is stored of a blob, to which nothing is being written.
func (s *Disk) uncountAll(b *blob) (freed int64) {
	for i := range b.dirty {
		s.unlist(sharer{b, i})
	}
	alone := b.bytes()
	for i := range b.shares {
		alone -= b.ref(i).Size
		freed += s.uncount(sharer{b, i})
	}
	s.used -= alone
	return freed + alone
}

// doubt has the chunks that share bytes with c checked when they are read next: what is wrong
// with one of them is wrong with all. s.mu is held.
func (s *Disk) doubt(c sharer) {
	for other := range c.b.shares[c.i] {
		other.b.checked.clear(other.i)
	}
}
