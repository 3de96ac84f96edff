package chunk

import (
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Map is a blob's chunks in order, without gaps. It is immutable.
type Map struct {
	blob  digest.Digest
	total int64
}

// Grid returns the map of a blob of total bytes, cut every [Size] bytes. An
// empty blob has one empty chunk. The error names a digest of unknown form or
// algorithm, or a size that is negative, above [MaxBlobSize], or 0 for a digest
// that is not that of nothing.
func Grid(blob digest.Digest, total int64) (*Map, error) {
	if err := blob.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w", string(blob), err)
	}
	if total < 0 || total > MaxBlobSize {
		return nil, fmt.Errorf("blob %s: size %d is out of range", blob, total)
	}
	if total == 0 && blob.Algorithm().FromBytes(nil) != blob {
		return nil, &CorruptError{Source: "size", Ref: Ref{Blob: blob}, Reason: "an empty blob does not have this digest"}
	}
	return &Map{blob: blob, total: total}, nil
}

// Blob returns the digest of the mapped blob.
func (m *Map) Blob() digest.Digest { return m.blob }

// Size returns the blob's length in bytes.
func (m *Map) Size() int64 { return m.total }

// Len returns the number of chunks, at least 1.
func (m *Map) Len() int { return Count(m.total) }

// Count returns how many chunks a blob of total bytes has, at least 1.
func Count(total int64) int { return max(1, int((total+Size-1)/Size)) }

// At returns the chunk at position i, 0 ≤ i < Len.
func (m *Map) At(i int) Ref {
	off := int64(i) * Size
	return Ref{Blob: m.blob, Total: m.total, Offset: off, Size: min(Size, m.total-off)}
}

// Find returns the position of the chunk that holds the byte at off,
// 0 ≤ off < Size.
func (m *Map) Find(off int64) int { return int(off / Size) }
