package main

import (
	"crypto/sha256"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
)

const batch = 1 << 20 // bytes of chunks that are compressed together

// tally is what becomes of the new versions of a set.
type tally struct {
	chunks int // in all
	total  int // bytes that were cut
	held   int // bytes of those that the older versions have, or an earlier place of the new ones
	packed int // bytes of the other chunks as they are sent
	maps   int // bytes of the maps as they are sent
}

// tallyOf cuts both versions of all pairs.
func tallyOf(s scheme, pairs []pair) (n tally, err error) {
	held := make(map[toc.Digest]bool)
	for _, p := range pairs {
		c, err := s.cut(p.older)
		if err != nil {
			return n, err
		}
		for _, q := range c.chunks {
			held[sha256.Sum256(q)] = true
		}
	}
	for _, p := range pairs {
		c, err := s.cut(p.newer)
		if err != nil {
			return n, err
		}
		n.add(&c, held)
	}
	return n, nil
}

// add counts a new version, of which everything is held from then on.
func (n *tally) add(c *cut, held map[toc.Digest]bool) {
	n.chunks += len(c.chunks)
	n.total += c.size()
	n.maps += c.mapSize()
	var fresh []byte
	send := func() {
		if c.raw {
			n.packed += len(fresh)
		} else {
			n.packed += pack(fresh)
		}
		fresh = fresh[:0]
	}
	for _, p := range c.chunks {
		sum := toc.Digest(sha256.Sum256(p))
		if held[sum] {
			n.held += len(p)
			continue
		}
		held[sum] = true
		if fresh = append(fresh, p...); len(fresh) >= batch {
			send()
		}
	}
	send()
}

var encoder = sync.OnceValue(func() *zstd.Encoder {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // the options are right
	}
	return z
})

// pack returns how many bytes p takes, compressed.
func pack(p []byte) int {
	if len(p) == 0 {
		return 0
	}
	return len(encoder().EncodeAll(p, nil))
}
