package cdc

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// The sizes of chunks, in bytes. They are part of the protocol, as is all of this file:
// sites that cut otherwise have nothing in common. They are never to change.
const (
	MinSize    = 16 << 10
	NormalSize = 64 << 10
	MaxSize    = 256 << 10
)

// hashed is how many bytes a hash is of: the part of one before them is shifted out.
const hashed = 64

// A Cutter cuts bytes where their content says so.
type Cutter struct {
	min, normal, max int
	// A chunk ends where the hash of its last 64 bytes is below early, or below late once it
	// has the normal size.
	early, late uint64
}

// protocol cuts as sites do.
var protocol = NewCutter(NormalSize)

// NewCutter returns a cutter for chunks of about normal bytes, a power of 2 of at least
// 256, and of a quarter to four times as many. Sites cut with [NormalSize]; others are there
// to compare it with.
func NewCutter(normal int) *Cutter {
	const level = 2 // of normalization: bits more before the normal size, bits less from it on
	n := bits.Len(uint(normal)) - 1
	return &Cutter{
		min: normal / 4, normal: normal, max: normal * 4,
		early: 1 << (64 - n - level), late: 1 << (64 - n + level),
	}
}

// Cut returns the size of the first chunk of p, which is all that follows, or at least
// [MaxSize] bytes of it. Only the last chunk may be smaller than [MinSize]; of nothing it is 0.
func Cut(p []byte) int { return protocol.Cut(p) }

// Cut is [Cut] with the sizes of c.
func (c *Cutter) Cut(p []byte) int {
	p = p[:min(len(p), c.max)]
	if len(p) <= c.min {
		return len(p)
	}
	normal := min(len(p), c.normal)
	_, h := roll(0, p[c.min-hashed:c.min-1], 0)
	n, h := roll(h, p[c.min-1:normal-1], c.early)
	if n > 0 {
		return c.min - 1 + n
	}
	if n, _ = roll(h, p[normal-1:], c.late); n > 0 {
		return normal - 1 + n
	}
	return len(p)
}

// roll goes on with the hash h over p, up to the first byte that brings it below limit.
// It returns how many bytes that takes, or 0 if none does, and the hash. To take two bytes
// at once, as a later paper has it, is a fifth faster in Go, and four times as long.
func roll(h uint64, p []byte, limit uint64) (int, uint64) {
	for i, b := range p {
		h = h<<1 + gear[b]
		if h < limit {
			return i + 1, h
		}
	}
	return 0, h
}

// gear is what each byte adds to the hash: the first 8 bytes, big-endian, of the SHA-256 of
// the byte.
var gear = func() (g [256]uint64) {
	for i := range g {
		sum := sha256.Sum256([]byte{byte(i)})
		g[i] = binary.BigEndian.Uint64(sum[:])
	}
	return g
}()
