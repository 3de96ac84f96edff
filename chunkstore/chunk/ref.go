package chunk

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	// The algorithms that the image specification registers and the standard
	// library has; go-digest knows an algorithm only once its hash is linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

const (
	// Size is the grid on which blobs are cut, in bytes: every chunk of a blob
	// but the last has this size. It stays below the 2 MiB that bitswap carries.
	Size = 1 << 20

	// StripeSize is the largest piece in which blobs are fetched from an upstream and
	// placed on nodes, in bytes: a whole number of chunks.
	StripeSize = 4 << 20

	// MaxBlobSize bounds what a blob may claim to be, in bytes (1 TiB), so that
	// no size from outside makes a map larger than memory.
	MaxBlobSize = 1 << 40
)

// Ref names one chunk of one blob.
type Ref struct {
	Blob   digest.Digest // the blob's digest
	Total  int64         // the blob's size in bytes; every ref of a blob carries it
	Offset int64         // where the chunk begins in the blob
	Size   int64         // the chunk's length in bytes, 0 only for an empty blob
	Digest digest.Digest // the chunk's own digest; empty while it is not known
}

// Key identifies the place a [Ref] names, whatever is known of its content.
type Key struct {
	Blob   digest.Digest
	Offset int64
}

// Key returns the place r names.
func (r Ref) Key() Key { return Key{r.Blob, r.Offset} }

// Index returns the position of the chunk in its blob, counted from 0.
func (r Ref) Index() int { return int(r.Offset / Size) }

// Last reports whether r is the last chunk of its blob.
func (r Ref) Last() bool { return r.Offset+r.Size == r.Total }

// Whole reports whether the chunk is the whole blob.
func (r Ref) Whole() bool { return r.Size == r.Total }

// Want returns the digest that the chunk's bytes must have, or "" when none is
// known: that of the chunk, or that of the blob when the chunk is all of it.
func (r Ref) Want() digest.Digest {
	if r.Whole() {
		return r.Blob
	}
	return r.Digest
}

// String returns the ref as sha256:…[offset+size].
func (r Ref) String() string {
	return fmt.Sprintf("%s[%d+%d]", r.Blob, r.Offset, r.Size)
}

// Validate reports what is wrong with a ref that came from outside: a digest of
// unknown form or algorithm, or a place that is not on the blob's grid.
func (r Ref) Validate() error {
	if err := r.Blob.Validate(); err != nil {
		return fmt.Errorf("chunk of blob %q: %w", string(r.Blob), err)
	}
	if r.Digest != "" {
		if err := r.Digest.Validate(); err != nil {
			return fmt.Errorf("chunk %s: digest %q: %w", r, string(r.Digest), err)
		}
	}
	switch {
	case r.Total < 0 || r.Total > MaxBlobSize:
		return fmt.Errorf("chunk %s: a blob of %d bytes", r, r.Total)
	case r.Offset < 0 || r.Offset%Size != 0 || r.Offset > max(r.Total-1, 0):
		return fmt.Errorf("chunk %s: offset is not on the grid of a blob of %d bytes", r, r.Total)
	case r.Size != min(Size, r.Total-r.Offset):
		return fmt.Errorf("chunk %s: size is not on the grid of a blob of %d bytes", r, r.Total)
	}
	return nil
}

// Check reports whether p can be the chunk that r names: it has the right
// length and, where a digest is known, that digest. The error is a
// [*CorruptError] that blames source.
func (r Ref) Check(source string, p []byte) error {
	if int64(len(p)) != r.Size {
		return &CorruptError{Source: source, Ref: r, Reason: fmt.Sprintf("%d bytes arrived", len(p))}
	}
	want := r.Want()
	if want == "" {
		return nil
	}
	if got := want.Algorithm().FromBytes(p); got != want {
		return &CorruptError{Source: source, Ref: r, Reason: fmt.Sprintf("digest is %s, want %s", got, want)}
	}
	return nil
}
