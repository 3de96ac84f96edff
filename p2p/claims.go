package p2p

import (
	"cmp"
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
// needs no memory. Registries do not vouch for each other, so each has claims of its
// own ([Claims.Of]). It is safe for concurrent use. What is remembered ends with the
// process unless it is handed on ([Claims.Encode]): a chunk of an unproven blob of
// which nothing is remembered is read here, and not lent.
type Claims struct {
	signer  Signer
	blame   func(id tracker.ID, err error)
	parents Parents // nil for none

	mu sync.Mutex
	// By offset. One of this node without a signature is signed when it is lent, and
	// one that says nothing is hashed. One of another without a signature is of a map.
	blobs    map[claimed]map[int64]wire.Claim
	suspects map[claimed]map[int64]wire.Claim // of blobs that were refuted
	faults   map[claimed][]fault              // what came of comparing those with the upstream
	count    int                              // of claims in blobs and suspects

	fetched atomic.Int64 // bytes from the upstream, of all blobs
}

// Parents are the sites that members fetch from before the registry itself.
type Parents interface {
	// Believed reports whether there is a parent of that name which is not at fault.
	Believed(name string) bool
	// Blame is told what a parent did wrong.
	Blame(name string, err error)
}

// claimed is a blob as a registry has it.
type claimed struct {
	host string
	blob digest.Digest
}

// fault is a claim of which the upstream's bytes are not.
type fault struct {
	signer tracker.ID
	parent string // that the signer had it from, who is then not at fault
	err    error
}

// NewClaims returns an empty memory. blame is told who signed for what the upstream
// does not send.
func NewClaims(signer Signer, blame func(id tracker.ID, err error)) *Claims {
	return &Claims{
		signer: signer, blame: blame,
		blobs:    make(map[claimed]map[int64]wire.Claim),
		suspects: make(map[claimed]map[int64]wire.Claim),
		faults:   make(map[claimed][]fault),
	}
}

// Believe has claims believed that rest on these parents. It is called before there are claims; without it
// none such is believed.
func (c *Claims) Believe(parents Parents) { c.parents = parents }

// Of returns the claims on what a registry has.
func (c *Claims) Of(host string) HostClaims { return HostClaims{c, host} }

// HostClaims are the [Claims] on what one registry has.
type HostClaims struct {
	c    *Claims
	host string
}

// Own records that this node has fetched a chunk from the upstream, and compares it
// with what others have said of it if the blob has been refuted.
func (h HostClaims) Own(ref chunk.Ref, p []byte) { h.OwnBy("", ref, p) }

// OwnBy is Own for a chunk that a parent gave; "" is the registry itself.
func (h HostClaims) OwnBy(parent string, ref chunk.Ref, p []byte) {
	c, k := h.c, claimed{h.host, ref.Blob}
	c.fetched.Add(int64(len(p)))
	if ref.Whole() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if suspect, ok := c.suspects[k][ref.Offset]; ok {
		delete(c.suspects[k], ref.Offset)
		c.count--
		if suspect.Signer != c.signer.ID() && suspect.Check("", ref, p) != nil {
			err := &chunk.CorruptError{Source: "peer " + string(suspect.Signer), Ref: ref, Reason: "it vouched for other bytes than the upstream's"}
			if suspect.Parent != "" {
				err.Source = chunk.OfParent(suspect.Parent)
				err.Reason = "it gave other bytes than the upstream, as " + string(suspect.Signer) + " says"
			}
			c.faults[k] = append(c.faults[k], fault{suspect.Signer, suspect.Parent, err})
		}
	}
	if before := c.blobs[k][ref.Offset]; c.mapped(before) && before.Check("", ref, p) != nil {
		return // what is stored may be what the map says
	}
	c.put(k, ref.Offset, wire.Claim{Signer: c.signer.ID(), Parent: parent})
}

// Keep records a claim of another that has been checked.
func (h HostClaims) Keep(ref chunk.Ref, claim wire.Claim) {
	c, k := h.c, claimed{h.host, ref.Blob}
	c.mu.Lock()
	defer c.mu.Unlock()
	if before := c.blobs[k][ref.Offset]; c.mapped(before) && before.Digest != claim.Digest {
		return // the same
	}
	c.put(k, ref.Offset, claim)
}

// Mapped records that a chunk which is stored here was taken for one of a blob because it has
// the digest that a member's map of the blob gives, which is ref's. Nobody has signed for
// that, so the chunk is not lent before the blob is proven; but it is the giver's word as
// much as a claim, if the blob turns out not to match.
func (h HostClaims) Mapped(ref chunk.Ref, giver tracker.ID) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.c.put(claimed{h.host, ref.Blob}, ref.Offset, wire.Claim{Digest: ref.Digest, Signer: giver})
}

// mapped reports whether a claim is what a map says.
func (c *Claims) mapped(claim wire.Claim) bool {
	return claim.Signature == nil && claim.Digest != "" && claim.Signer != c.signer.ID()
}

// put makes room by forgetting whole blobs, and forgets the claim itself where that
// makes none. c.mu is held.
func (c *Claims) put(k claimed, offset int64, claim wire.Claim) {
	for _, all := range []map[claimed]map[int64]wire.Claim{c.blobs, c.suspects} {
		for other := range all {
			if c.count < maxClaimed {
				break
			}
			if other != k {
				c.count -= len(all[other])
				delete(all, other)
				delete(c.faults, other)
			}
		}
	}
	of := c.blobs[k]
	if of == nil {
		of = make(map[int64]wire.Claim)
		c.blobs[k] = of
	}
	if _, known := of[offset]; !known {
		if c.count >= maxClaimed {
			return
		}
		c.count++
	}
	of[offset] = claim
}

// get returns what is remembered of a chunk.
func (h HostClaims) get(ref chunk.Ref) (claim wire.Claim, known bool) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	claim, known = h.c.blobs[claimed{h.host, ref.Blob}][ref.Offset]
	return claim, known
}

// Proof is what a store knows of a blob that has matched its digest: the links before
// and after a chunk, if they are known.
type Proof struct {
	Proven        bool
	Before, After chunk.Link
}

// For returns the claim with which a chunk may be lent. ok is false if nobody has
// vouched for it.
func (h HostClaims) For(ref chunk.Ref, p []byte, proof Proof) (claim wire.Claim, ok bool) {
	proven := proof.Proven
	claim, known := h.get(ref)
	parent := claim.Parent
	if h.c.mapped(claim) {
		claim, known = wire.Claim{}, false
	}
	switch {
	case !known && !proven:
		return claim, false
	case known && claim.Signature != nil:
		return claim, true // what is lent has been checked by the store; the asker checks the claim
	case claim.Says() && !proven:
		return claim, false // it was proven, and is no more
	case claim.Says():
	case proof.Before != "" || proof.After != "":
		claim = wire.Claim{Before: proof.Before, After: proof.After, Signer: h.c.signer.ID()}
	default:
		claim = wire.Claim{Digest: digest.FromBytes(p), Signer: h.c.signer.ID()}
		if known && !proven {
			claim.Parent = parent
		}
	}
	signature, err := h.c.signer.Sign(claim.Text(ref))
	if err != nil {
		return claim, false
	}
	claim.Signature = signature
	h.Keep(ref, claim)
	return claim, true
}

// Vouched reports whether a chunk may be lent: For would say so.
func (h HostClaims) Vouched(ref chunk.Ref, proven bool) bool {
	if ref.Whole() || proven {
		return true
	}
	claim, known := h.get(ref)
	return known && (claim.Signature != nil || !claim.Says())
}

// Fetched reports whether this node has fetched a chunk from the upstream itself,
// as far as it remembers.
func (h HostClaims) Fetched(ref chunk.Ref) bool {
	parent, itself := h.FetchedBy(ref)
	return itself && parent == ""
}

// FetchedBy is Fetched for a chunk that may come from a parent; "" is the registry itself.
func (h HostClaims) FetchedBy(ref chunk.Ref) (parent string, itself bool) {
	claim, known := h.get(ref)
	return claim.Parent, known && claim.Signer == h.c.signer.ID()
}

// Refuted records that a blob did not match its digest. Until it is proven it is
// got from the upstream alone.
func (h HostClaims) Refuted(d digest.Digest) {
	c, k := h.c, claimed{h.host, d}
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.blobs[k]
	if of == nil {
		of = make(map[int64]wire.Claim)
	}
	delete(c.blobs, k)
	c.forgetSuspect(k)
	for other := range c.suspects {
		if len(c.suspects) < maxSuspects {
			break
		}
		c.forgetSuspect(other)
	}
	c.suspects[k] = of
}

// forgetSuspect ends a suspicion; c.mu is held.
func (c *Claims) forgetSuspect(k claimed) {
	c.count -= len(c.suspects[k])
	delete(c.suspects, k)
	delete(c.faults, k)
}

// Suspected reports whether a blob has been refuted, and not been proven since.
func (h HostClaims) Suspected(d digest.Digest) bool {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	_, ok := h.c.suspects[claimed{h.host, d}]
	return ok
}

// errRefuted says that a blob did not match its digest while members were sending some of it.
var errRefuted = fmt.Errorf("the blob has been refuted meanwhile: %w", chunk.ErrNotFound)

// unlessRefuted passes chunks of a blob on as long as what members have of it is believed. What they
// were sending when it was refuted may be of the same lie, and the next reader's would be refuted, too.
func (c *Client) unlessRefuted(host string, yield func(chunk.Ref, []byte) error) func(chunk.Ref, []byte) error {
	claims := c.claims.Of(host)
	return func(ref chunk.Ref, p []byte) error {
		if claims.Suspected(ref.Blob) {
			return errRefuted
		}
		return yield(ref, p)
	}
}

// Proven makes what others have said of a blob, which has matched its digest, this
// node's own word: theirs is worth nothing when they have left. Who had signed for
// something else is to blame now, once for all of it: before, it might have been the upstream.
func (h HostClaims) Proven(d digest.Digest) {
	blamed := make(map[string]bool)
	for _, f := range h.c.proven(claimed{h.host, d}) {
		who := cmp.Or(f.parent, string(f.signer))
		switch {
		case blamed[who]:
			continue
		case f.parent == "":
			h.c.blame(f.signer, f.err)
		case h.c.parents != nil:
			h.c.parents.Blame(f.parent, f.err)
		}
		blamed[who] = true
	}
}

func (c *Claims) proven(k claimed) []fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	faults := c.faults[k]
	c.forgetSuspect(k)
	for other, of := range c.blobs {
		if other.blob == k.blob && other != k { // said of what is not stored any more
			c.count -= len(of)
			delete(c.blobs, other)
		}
	}
	for offset, claim := range c.blobs[k] {
		if c.mapped(claim) { // maybe not of the chunk that has turned out to be right
			delete(c.blobs[k], offset)
			c.count--
		} else if claim.Signer != c.signer.ID() || claim.Parent != "" {
			c.blobs[k][offset] = wire.Claim{Digest: claim.Digest, Before: claim.Before, After: claim.After, Signer: c.signer.ID()}
		}
	}
	return faults
}

// Check returns nil if p is the chunk that a claim is about, and the claim is its
// signer's. The error is a [*chunk.CorruptError] that blames whoever sent both, or says that
// the claim rests on a parent that is not believed, which is nobody's fault.
func (c *Claims) Check(ref chunk.Ref, p []byte, claim wire.Claim, from tracker.ID) error {
	source := "peer " + string(from)
	if ref.Whole() {
		return ref.Check(source, p)
	}
	switch {
	case !claim.Says() && ref.Digest != "":
		return ref.Check(source, p) // it was asked for by digest
	case !claim.Says():
		return &chunk.CorruptError{Source: source, Ref: ref, Reason: "nobody vouches for it"}
	case !c.signer.Verify(claim.Signer, claim.Text(ref), claim.Signature):
		return &chunk.CorruptError{Source: source, Ref: ref, Reason: "its claim has a wrong signature"}
	case claim.Parent != "" && (c.parents == nil || !c.parents.Believed(claim.Parent)):
		return fmt.Errorf("%s: what it has from the parent %q: %w", source, claim.Parent, errUntrusted)
	}
	if ref.Digest != "" && ref.Digest != claim.Digest {
		if err := ref.Check(source, p); err != nil {
			return err
		}
	}
	return claim.Check(source, ref, p)
}

// remembered is a claim as it is handed on to the next process.
type remembered struct {
	Host      string        `json:"host"`
	Blob      digest.Digest `json:"blob"`
	Offset    int64         `json:"offset"`
	Digest    digest.Digest `json:"digest,omitempty"`
	Before    []byte        `json:"before,omitempty"`
	After     []byte        `json:"after,omitempty"`
	Signer    tracker.ID    `json:"signer"`
	Signature []byte        `json:"signature,omitempty"`
	Parent    string        `json:"parent,omitempty"`
}

// Encode writes what is remembered, for the next process to read by [Claims.Decode]:
// a JSON object for each claim.
func (c *Claims) Encode(w io.Writer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := json.NewEncoder(w)
	for k, of := range c.blobs {
		for offset, claim := range of {
			if err := lines.Encode(remembered{k.host, k.blob, offset, claim.Digest, []byte(claim.Before), []byte(claim.After), claim.Signer, claim.Signature, claim.Parent}); err != nil {
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
		c.put(claimed{m.Host, m.Blob}, m.Offset, wire.Claim{
			Digest: m.Digest, Before: chunk.Link(m.Before), After: chunk.Link(m.After), Signer: m.Signer, Signature: m.Signature, Parent: m.Parent,
		})
	}
}
