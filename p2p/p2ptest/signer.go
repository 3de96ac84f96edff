package p2ptest

import (
	"bytes"
	"crypto/sha256"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

// Signer signs for the node of this ID, and checks what other Signers have signed.
// Anyone could: a signature is a hash of the ID and of what is signed.
type Signer tracker.ID

var _ p2p.Signer = Signer("")

// ID implements [p2p.Signer].
func (s Signer) ID() tracker.ID { return tracker.ID(s) }

// Sign implements [p2p.Signer].
func (s Signer) Sign(p []byte) ([]byte, error) { return signature(s.ID(), p), nil }

// Verify implements [p2p.Signer].
func (s Signer) Verify(id tracker.ID, p, sig []byte) bool { return bytes.Equal(sig, signature(id, p)) }

func signature(id tracker.ID, p []byte) []byte {
	h := sha256.New()
	h.Write([]byte(id))
	h.Write([]byte{0})
	h.Write(p)
	return h.Sum(nil)
}
