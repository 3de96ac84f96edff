package chunk

import (
	"bytes"
	"encoding"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/opencontainers/go-digest"
)

// Link is the chaining value of a blob's hash at the end of a chunk: 32 bytes
// for SHA-256, 64 for SHA-384 and SHA-512 (FIPS 180-4, section 6). Hashing from
// the link before a chunk over the chunk's bytes must give the link after it,
// so the links of a blob that matched its digest check each chunk alone, as
// strongly as a digest of the chunk would, and cost nothing to make.
//
// Links exist at multiples of [Size] only, where the hash has no partial block.
type Link string

// blockSize and the layout of the state that the standard library's hashes
// marshal: 4 bytes of magic, the chaining value, one block, the length.
const magicSize, lengthSize = 4, 8

// Prefix is the hash of a blob from its beginning to wherever it has been
// written to. It is for one goroutine.
type Prefix struct {
	blob digest.Digest
	h    hash.Hash
	n    int64
}

// NewPrefix returns an empty prefix of blob, whose algorithm must be available.
func NewPrefix(blob digest.Digest) *Prefix {
	return &Prefix{blob: blob, h: blob.Algorithm().Hash()}
}

// Len returns the number of bytes hashed so far.
func (p *Prefix) Len() int64 { return p.n }

// Write adds the next bytes of the blob. It never fails.
func (p *Prefix) Write(b []byte) (int, error) {
	p.n += int64(len(b))
	return p.h.Write(b)
}

// Matches reports whether the bytes written have the blob's digest.
func (p *Prefix) Matches() bool {
	return digest.NewDigest(p.blob.Algorithm(), p.h) == p.blob
}

// Link returns the chaining value after what has been written, or "" where
// there is none: off the grid, or with a hash that does not show its state.
func (p *Prefix) Link() Link {
	m, ok := p.h.(encoding.BinaryMarshaler)
	if !ok || p.n%Size != 0 {
		return ""
	}
	state, err := m.MarshalBinary()
	if err != nil || len(state) <= magicSize+p.h.BlockSize()+lengthSize {
		return ""
	}
	return Link(state[magicSize : len(state)-p.h.BlockSize()-lengthSize])
}

// prefixAt returns the prefix of n bytes whose chaining value is link.
func prefixAt(blob digest.Digest, n int64, link Link) (*Prefix, error) {
	p := NewPrefix(blob)
	if n == 0 {
		return p, nil
	}
	state, err := p.h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, err
	}
	if len(state) != magicSize+len(link)+p.h.BlockSize()+lengthSize {
		return nil, fmt.Errorf("a link of %d bytes does not fit %s", len(link), blob.Algorithm())
	}
	copy(state[magicSize:], link)
	binary.BigEndian.PutUint64(state[len(state)-lengthSize:], uint64(n))
	if err := p.h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		return nil, err
	}
	p.n = n
	return p, nil
}

// CheckLink reports whether b is the chunk ref of a blob whose hash has the
// value before at the chunk's beginning and after at its end. before is ignored
// for a blob's first chunk and after for its last, where the blob's own digest
// must come out. The error is a [*CorruptError] that blames source.
func (r Ref) CheckLink(source string, before, after Link, b []byte) error {
	p, err := prefixAt(r.Blob, r.Offset, before)
	if err != nil {
		return &CorruptError{Source: source, Ref: r, Reason: err.Error()}
	}
	_, _ = p.Write(b)
	if r.Last() && p.Matches() || !r.Last() && after != "" && bytes.Equal([]byte(p.Link()), []byte(after)) {
		return nil
	}
	return &CorruptError{Source: source, Ref: r, Reason: "does not fit between its links"}
}
