package cdc

import (
	"fmt"
	"sort"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
)

// MaxPacked is how many bytes a map that is sent has at the most, as it is and as it is encoded: 64 MiB. That of
// 32 GB of large files has so many, or of a million small ones.
const MaxPacked = 64 << 20

// Pack returns the map as it is kept and sent: encoded, in one frame of zstd. The error wraps [toc.ErrLimit] when it would be larger
// than [MaxPacked].
func (m *Map) Pack() ([]byte, error) {
	p := m.Append(nil)
	if len(p) > MaxPacked {
		return nil, fmt.Errorf("content map: %w: %d bytes", toc.ErrLimit, len(p))
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("content map: %w", err)
	}
	packed := z.EncodeAll(p, nil)
	if len(packed) > MaxPacked {
		return nil, fmt.Errorf("content map: %w: %d bytes as it is sent", toc.ErrLimit, len(packed))
	}
	return packed, nil
}

// Unpack returns the map that p was packed from. It takes up to some 400 MB of memory while p is one of MaxPacked. The error wraps
// [toc.ErrFormat], [toc.ErrLimit] or [toc.ErrMalformed].
func Unpack(p []byte) (*Map, error) {
	if len(p) > MaxPacked {
		return nil, fmt.Errorf("content map: %w: more than %d bytes", toc.ErrLimit, MaxPacked)
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxPacked))
	if err != nil {
		return nil, fmt.Errorf("content map: %w", err)
	}
	defer z.Close()
	p, err = z.DecodeAll(p, nil)
	if err != nil {
		return nil, fmt.Errorf("content map: %w: %w", toc.ErrMalformed, err)
	}
	return Decode(p)
}

// Find returns the number of the chunk that a byte is in, 0 ≤ at < Size.
func (m *Map) Find(at int64) int {
	return sort.Search(len(m.Chunks), func(i int) bool { return m.Chunks[i].Offset+m.Chunks[i].Size > at })
}
