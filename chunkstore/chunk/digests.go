package chunk

import (
	"crypto/sha256"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// DigestSize is how many bytes a digest takes among [Digests].
const DigestSize = sha256.Size

// Digests are the SHA-256 digests of adjacent chunks of a blob, in order: a part of a map
// that tells what the chunks are. They are as good as the word of whoever gives them.
type Digests []byte

// ReadDigests returns the digests of n chunks, as somebody else has sent them.
func ReadDigests(p []byte, n int) (Digests, error) {
	if n < 0 || len(p) != n*DigestSize {
		return nil, fmt.Errorf("digests of %d chunks: %d bytes", n, len(p))
	}
	return Digests(p), nil
}

// Len returns the number of digests.
func (d Digests) Len() int { return len(d) / DigestSize }

// At returns the digest at position i, 0 ≤ i < Len.
func (d Digests) At(i int) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, d[i*DigestSize:(i+1)*DigestSize])
}
