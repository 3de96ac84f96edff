package p2p

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// maxClaimed bounds the chunks that claims are remembered of, 200 bytes each.
const maxClaimed = 1 << 16

// maxSuspects bounds the blobs that are remembered to have been refuted.
const maxSuspects = 1 << 10

// Signer signs for this node and checks what others have signed.
type Signer interface {
	ID() tracker.ID
	Sign(p []byte) ([]byte, error)
	// Verify reports whether signature is that of p by the key that is id.
	Verify(id tracker.ID, p, signature []byte) bool
}

// Claims remembers why chunks that are stored here may be lent: this node fetched
// them from the upstream, or another member has signed for them. What is proven
// needs no memory. It is safe for concurrent use. What is remembered ends with the
// process unless it is handed on ([Claims.Encode]): a chunk of an unproven blob of
// which nothing is remembered is read here, and not lent.
type Claims struct {
	signer Signer
	blame  func(id tracker.ID, err error)

	mu sync.Mutex
	// By offset. One of this node without a signature is signed when it is lent, and
	// one without a digest hashed.
	blobs    map[digest.Digest]map[int64]wire.Claim
	suspects map[digest.Digest]map[int64]wire.Claim // of blobs that were refuted
	count    int                                    // of claims in both

	fetched atomic.Int64 // bytes from the upstream, of all blobs
}

// NewClaims returns an empty memory. blame is told who signed for what the upstream
// does not send.
func NewClaims(signer Signer, blame func(id tracker.ID, err error)) *Claims {
	return &Claims{
		signer: signer, blame: blame,
		blobs:    make(map[digest.Digest]map[int64]wire.Claim),
		suspects: make(map[digest.Digest]map[int64]wire.Claim),
	}
}

// Own records that this node has fetched a chunk from the upstream, and compares it
// with what others have said of it if the blob has been refuted.
func (c *Claims) Own(ref chunk.Ref, p []byte) {
	c.fetched.Add(int64(len(p)))
	if ref.Whole() {
		return
	}
	c.mu.Lock()
	suspect, suspected := c.suspects[ref.Blob][ref.Offset]
	if suspected {
		delete(c.suspects[ref.Blob], ref.Offset)
		c.count--
	}
	c.put(ref, wire.Claim{Signer: c.signer.ID()})
	c.mu.Unlock()
	if suspected && suspect.Signer != c.signer.ID() && digest.FromBytes(p) != suspect.Digest {
		c.blame(suspect.Signer, &chunk.CorruptError{Source: "peer " + string(suspect.Signer), Ref: ref, Reason: "it signed for other bytes than the upstream's"})
	}
}

// Keep records a claim of another that has been checked.
func (c *Claims) Keep(ref chunk.Ref, claim wire.Claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(ref, claim)
}

// put makes room by forgetting whole blobs, and forgets the claim itself where that
// makes none. c.mu is held.
func (c *Claims) put(ref chunk.Ref, claim wire.Claim) {
	for _, all := range []map[digest.Digest]map[int64]wire.Claim{c.blobs, c.suspects} {
		for d := range all {
			if c.count < maxClaimed {
				break
			}
			if d != ref.Blob {
				c.count -= len(all[d])
				delete(all, d)
			}
		}
	}
	of := c.blobs[ref.Blob]
	if of == nil {
		of = make(map[int64]wire.Claim)
		c.blobs[ref.Blob] = of
	}
	if _, known := of[ref.Offset]; !known {
		if c.count >= maxClaimed {
			return
		}
		c.count++
	}
	of[ref.Offset] = claim
}

// For returns the claim with which a chunk may be lent. ok is false if nobody has
// vouched for it.
func (c *Claims) For(ref chunk.Ref, p []byte, proven bool) (claim wire.Claim, ok bool) {
	c.mu.Lock()
	claim, known := c.blobs[ref.Blob][ref.Offset]
	c.mu.Unlock()
	if !known && !proven {
		return claim, false
	}
	if known && claim.Signature != nil {
		return claim, true // what is lent has been checked by the store; the asker checks the claim
	}
	if claim.Digest != "" && !proven {
		return claim, false // it was proven, and is no more
	}
	if claim.Digest == "" {
		claim = wire.Claim{Digest: digest.FromBytes(p), Signer: c.signer.ID()}
	}
	signature, err := c.signer.Sign(claim.Text(ref))
	if err != nil {
		return claim, false
	}
	claim.Signature = signature
	c.Keep(ref, claim)
	return claim, true
}

// Vouched reports whether a chunk may be lent: For would say so.
func (c *Claims) Vouched(ref chunk.Ref, proven bool) bool {
	if ref.Whole() || proven {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	claim, known := c.blobs[ref.Blob][ref.Offset]
	return known && (claim.Signature != nil || claim.Digest == "")
}

// Check returns nil if p is the chunk that a claim is about, and the claim is its
// signer's. The error is a [*chunk.CorruptError] that blames whoever sent both.
func (c *Claims) Check(ref chunk.Ref, p []byte, claim wire.Claim, from tracker.ID) error {
	source := "peer " + string(from)
	if ref.Whole() {
		return ref.Check(source, p)
	}
	switch {
	case claim.Digest == "":
		return &chunk.CorruptError{Source: source, Ref: ref, Reason: "nobody vouches for it"}
	case !c.signer.Verify(claim.Signer, claim.Text(ref), claim.Signature):
		return &chunk.CorruptError{Source: source, Ref: ref, Reason: "its claim has a wrong signature"}
	}
	if ref.Digest != "" && ref.Digest != claim.Digest {
		if err := ref.Check(source, p); err != nil {
			return err
		}
	}
	ref.Digest = claim.Digest
	return ref.Check(source, p)
}

// Refuted records that a blob did not match its digest. Until it is proven it is
// got from the upstream alone.
func (c *Claims) Refuted(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.blobs[d]
	if of == nil {
		of = make(map[int64]wire.Claim)
	}
	delete(c.blobs, d)
	c.count -= len(c.suspects[d])
	delete(c.suspects, d)
	for other := range c.suspects {
		if len(c.suspects) < maxSuspects {
			break
		}
		c.count -= len(c.suspects[other])
		delete(c.suspects, other)
	}
	c.suspects[d] = of
}

// Suspected reports whether a blob has been refuted, and not been proven since.
func (c *Claims) Suspected(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.suspects[d]
	return ok
}

// Proven makes what others have said of a blob, which has matched its digest, this
// node's own word: theirs is worth nothing when they have left.
func (c *Claims) Proven(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count -= len(c.suspects[d])
	delete(c.suspects, d)
	for offset, claim := range c.blobs[d] {
		if claim.Signer != c.signer.ID() {
			c.blobs[d][offset] = wire.Claim{Digest: claim.Digest, Signer: c.signer.ID()}
		}
	}
}

// remembered is a claim as it is handed on to the next process.
type remembered struct {
	Blob      digest.Digest `json:"blob"`
	Offset    int64         `json:"offset"`
	Digest    digest.Digest `json:"digest,omitempty"`
	Signer    tracker.ID    `json:"signer"`
	Signature []byte        `json:"signature,omitempty"`
}

// Encode writes what is remembered, for the next process to read by [Claims.Decode]:
// a JSON object for each claim.
func (c *Claims) Encode(w io.Writer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := json.NewEncoder(w)
	for d, of := range c.blobs {
		for offset, claim := range of {
			if err := lines.Encode(remembered{d, offset, claim.Digest, claim.Signer, claim.Signature}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Decode remembers what [Claims.Encode] wrote. What comes after something malformed
// is left out.
func (c *Claims) Decode(r io.Reader) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for lines := json.NewDecoder(r); ; {
		var m remembered
		if err := lines.Decode(&m); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("claims: %w", err)
		}
		if m.Blob.Validate() != nil || m.Offset < 0 || m.Offset%chunk.Size != 0 || m.Digest != "" && m.Digest.Validate() != nil {
			return errors.New("claims: one is malformed")
		}
		c.put(chunk.Ref{Blob: m.Blob, Offset: m.Offset}, wire.Claim{Digest: m.Digest, Signer: m.Signer, Signature: m.Signature})
	}
}

// Fetched reports whether this node has fetched a chunk from the upstream itself,
// as far as it remembers.
func (c *Claims) Fetched(ref chunk.Ref) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim, ok := c.blobs[ref.Blob][ref.Offset]
	return ok && claim.Signer == c.signer.ID()
}
