package gossip

import (
	_ "crypto/sha512" // go-digest knows an algorithm when it is linked in
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

// message is what one member tells another of blobs that it holds.
type message struct {
	hold  bool // announced, or withdrawn
	from  tracker.ID
	blobs []digest.Digest
}

// A message is
//
//	version  1 byte, 1
//	kind     1 byte: 1 announced, 2 withdrawn
//	from     1 byte of length, and as many bytes of peer ID
//	digests  up to the end, each 1 byte of algorithm (1 sha256, 2 sha384,
//	         3 sha512), and its 32, 48 or 64 bytes
const (
	messageVersion = 1
	kindAnnounce   = 1
	kindWithdraw   = 2

	maxMessage = 32 << 10 // bytes
	maxDigests = 1000     // in a message
)

var algorithms = [...]digest.Algorithm{1: digest.SHA256, 2: digest.SHA384, 3: digest.SHA512}

// encode returns the messages that say what m says.
func (m message) encode() (messages [][]byte) {
	kind := byte(kindWithdraw)
	if m.hold {
		kind = kindAnnounce
	}
	head := appendString([]byte{messageVersion, kind}, string(m.from))
	body, n := head[:len(head):len(head)], 0
	for _, d := range m.blobs {
		entry := encodeDigest(d)
		if n == maxDigests || len(body)+len(entry) > maxMessage {
			messages = append(messages, body)
			body, n = head[:len(head):len(head)], 0
		}
		body = append(body, entry...)
		n++
	}
	if n > 0 {
		messages = append(messages, body)
	}
	return messages
}

// encodeDigest returns a digest that is valid, and nothing for one of an algorithm
// that has no place in messages.
func encodeDigest(d digest.Digest) []byte {
	for i, a := range algorithms {
		if a != "" && a == d.Algorithm() {
			if sum, err := hex.DecodeString(d.Encoded()); err == nil {
				return append([]byte{byte(i)}, sum...)
			}
		}
	}
	return nil
}

// decode returns the message of p. A message that is wrong in part is wrong.
func decode(p []byte) (m message, err error) {
	if len(p) > maxMessage || len(p) < 2 || p[0] != messageVersion {
		return m, errors.New("message is not of version 1")
	}
	if p[1] != kindAnnounce && p[1] != kindWithdraw {
		return m, fmt.Errorf("message is of kind %d", p[1])
	}
	m.hold = p[1] == kindAnnounce
	r := reader{p[2:], true}
	if m.from = tracker.ID(r.string()); !validID(m.from) {
		return m, errors.New("message is from nobody")
	}
	for len(r.b) > 0 && len(m.blobs) < maxDigests {
		d, err := decodeDigest(&r)
		if err != nil {
			return m, err
		}
		m.blobs = append(m.blobs, d)
	}
	if len(r.b) > 0 {
		return m, errors.New("message has too many digests")
	}
	return m, nil
}

func decodeDigest(r *reader) (digest.Digest, error) {
	i := int(r.byte())
	if i < 1 || i >= len(algorithms) {
		return "", fmt.Errorf("message has a digest of algorithm %d", i)
	}
	sum := r.take(algorithms[i].Size())
	if !r.ok {
		return "", errors.New("message ends early")
	}
	d := digest.NewDigestFromBytes(algorithms[i], sum)
	return d, d.Validate()
}
