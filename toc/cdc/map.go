package cdc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"

	"github.com/granary-oci/granary/toc"
)

const (
	// MaxInline is the size, in bytes, of the largest chunk that a map has inline.
	MaxInline = 64 << 10
	// MaxChunks is how many chunks a map may have: 300 MB of memory. Those of Debian's packages
	// are of 45 KB on average, of which a tar of 180 GB has as many.
	MaxChunks = 1 << 22

	maxInlined = 32 << 20 // bytes that a map has inline in all
)

// Chunk is a run of the bytes that a map is of.
type Chunk struct {
	Offset int64 // in bytes, of the first one
	Size   int64 // in bytes: 1 to [MaxSize]
	// Digest is the SHA-256 of the chunk, unless the bytes themselves are Inline.
	Digest toc.Digest
	Inline []byte
}

// Fits reports whether p is the chunk.
func (c *Chunk) Fits(p []byte) bool {
	if c.Inline != nil {
		return string(p) == string(c.Inline)
	}
	return int64(len(p)) == c.Size && sha256.Sum256(p) == c.Digest
}

// Map has the chunks of some bytes, in order and without gaps. It is as good as the word of
// whoever made it: what is put together by it is to be held against a digest of the whole.
type Map struct {
	Chunks []Chunk
}

// Of returns the map of what r has, and reads that to its end. It need not be a tar. The
// same bytes have the same map, however r gives them. The error is one of r or of ctx, or wraps
// [toc.ErrLimit] when there are more than [MaxChunks].
func Of(ctx context.Context, r io.Reader) (*Map, error) { return of(ctx, r, MaxChunks) }

func of(ctx context.Context, r io.Reader, most int) (*Map, error) {
	m := new(Map)
	err := Walk(ctx, r, func(c Chunk, _ []byte) error {
		if len(m.Chunks) == most {
			return fmt.Errorf("%w: more than %d chunks", toc.ErrLimit, most)
		}
		c.Inline = slices.Clone(c.Inline)
		m.Chunks = append(m.Chunks, c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Size is how many bytes the map is of.
func (m *Map) Size() int64 {
	if len(m.Chunks) == 0 {
		return 0
	}
	last := m.Chunks[len(m.Chunks)-1]
	return last.Offset + last.Size
}
