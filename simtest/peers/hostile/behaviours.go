package hostile

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
)

// Behaviour is how a member answers requests for chunks.
type Behaviour struct {
	Name string
	// State is what others hold it to be when they have asked it, as in
	// p2p.PeerStatus.
	State string
	// Late says that only the whole blob shows what is wrong: a response that has
	// begun by then is broken off.
	Late bool

	chunks func(*lane, request) error           // answers a request; the error ends the lane
	digest func(*lane, uint32, wire.Part) error // answers a question for a part of a map; nil refuses
	greet  func(*lane)                          // in place of all that is said on a lane
}

const (
	up          = "up"
	down        = "down"
	quarantined = "quarantined"
)

// Behaviours are all there are.
var Behaviours = []Behaviour{
	{Name: "wrong-bytes", State: quarantined, chunks: wrongBytes},
	{Name: "too-few-bytes", State: quarantined, chunks: tooFew},
	{Name: "too-many-bytes", State: quarantined, chunks: tooMany},
	{Name: "wrong-signature", State: quarantined, chunks: wrongSignature},
	{Name: "claim-of-another", State: quarantined, chunks: claimOfAnother},
	{Name: "claim-on-another-chunk", State: quarantined, chunks: claimOnAnotherChunk},
	{Name: "claim-of-a-stranger", State: up, chunks: claimOfAStranger},
	{Name: "signed-lie", State: quarantined, Late: true, chunks: signedLie},
	{Name: "endless-chunks", State: quarantined, chunks: endlessChunks},
	{Name: "endless-frame", State: down, greet: endlessFrame},
	{Name: "too-large-frame", State: quarantined, chunks: tooLargeFrame},
	{Name: "bomb", State: quarantined, chunks: bomb},
	{Name: "noise", State: quarantined, chunks: noise},
	{Name: "another-protocol", State: down, greet: anotherProtocol},
	{Name: "silence", State: down, greet: silence},
}

// Named returns the behaviour of that name.
func Named(name string) (Behaviour, bool) {
	for _, b := range Behaviours {
		if b.Name == name {
			return b, true
		}
	}
	return Behaviour{}, false
}

// junk is what is sent in place of any chunk, and a byte more.
var junk = sync.OnceValue(func() []byte {
	p := make([]byte, chunk.Size+1)
	_, _ = rand.NewChaCha8([32]byte{'j'}).Read(p)
	return p
})

// each sends one body for each chunk that was asked for, and then that this is all.
func each(l *lane, q request, body func(chunk.Ref) (wire.Data, []byte)) error {
	for _, ref := range q.refs {
		d, p := body(ref)
		if err := l.send(q, ref, d, p); err != nil {
			return err
		}
	}
	return l.end(q, wire.TypeDone)
}

// wrongBytes are not those that the claim is about.
func wrongBytes(l *lane, q request) error {
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		p := junk()[:ref.Size]
		return wire.Data{Claim: claims(l.member.identity, ref, junk()[1:])}, p
	})
}

func tooFew(l *lane, q request) error {
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		p := junk()[:ref.Size-1]
		return wire.Data{Claim: claims(l.member.identity, ref, p)}, p
	})
}

func tooMany(l *lane, q request) error {
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		p := junk()[:ref.Size+1]
		return wire.Data{Claim: claims(l.member.identity, ref, p)}, p
	})
}

func wrongSignature(l *lane, q request) error {
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		p := junk()[:ref.Size]
		c := claims(l.member.identity, ref, p)
		c.Signature[0] ^= 1
		return wire.Data{Claim: c}, p
	})
}

// claimOfAnother names a member that has not signed.
func claimOfAnother(l *lane, q request) error {
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		p := junk()[:ref.Size]
		c := claims(l.member.identity, ref, p)
		c.Signer = l.member.another(l.from)
		return wire.Data{Claim: sign(l.member.identity, ref, c)}, p
	})
}

func claimOnAnotherChunk(l *lane, q request) error {
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		p, other := junk()[:ref.Size], ref
		other.Offset += chunk.Size
		return wire.Data{Claim: claims(l.member.identity, other, p)}, p
	})
}

// claimOfAStranger is right in all but that nobody knows who has signed it. To lend on
// what somebody signed who has left since is no fault.
func claimOfAStranger(l *lane, q request) error {
	if q.refs[0].Whole() { // it would need no claim
		return l.end(q, wire.TypeNotFound)
	}
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		p := junk()[:ref.Size]
		return wire.Data{Claim: claims(l.member.stranger, ref, p)}, p
	})
}

// signedLie is right in all but that the upstream has other bytes.
func signedLie(l *lane, q request) error {
	if q.refs[0].Whole() {
		return l.end(q, wire.TypeNotFound)
	}
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		p := junk()[:ref.Size]
		return wire.Data{Claim: claims(l.member.identity, ref, p)}, p
	})
}

// endlessChunks are of an answer that is over.
func endlessChunks(l *lane, q request) error {
	ref := q.refs[0]
	p := junk()[:ref.Size]
	why := wire.Unavailable{Message: "this is not all"}
	err := l.write(wire.Frame{Type: wire.TypeUnavailable, ID: q.id, Header: why.Header()})
	for d := (wire.Data{Claim: claims(l.member.identity, ref, p)}); err == nil; {
		err = l.send(q, ref, d, p)
	}
	return err
}

// endlessFrame begins a frame of the largest size there is on every lane, of which
// then comes a byte now and then.
func endlessFrame(l *lane) {
	if l.greet() != nil {
		return
	}
	head := make([]byte, 12)
	head[0] = byte(wire.TypeData)
	binary.BigEndian.PutUint32(head[1:], 1)
	binary.BigEndian.PutUint32(head[8:], wire.MaxBody)
	for _, err := l.Write(head); err == nil; _, err = l.Write(head[:1]) {
		time.Sleep(100 * time.Millisecond)
	}
}

func tooLargeFrame(l *lane, q request) error {
	head := make([]byte, 12)
	head[0] = byte(wire.TypeData)
	binary.BigEndian.PutUint32(head[1:], q.id)
	binary.BigEndian.PutUint32(head[8:], 1<<31)
	return l.forever(io.MultiReader(bytes.NewReader(head), endless{}))
}

var inflates = sync.OnceValue(func() []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(make([]byte, 16<<20), nil)
})

// bomb is little that becomes much.
func bomb(l *lane, q request) error {
	return each(l, q, func(ref chunk.Ref) (wire.Data, []byte) {
		return wire.Data{Compressed: true, Claim: claims(l.member.identity, ref, junk()[:ref.Size])}, inflates()
	})
}

// noise is no frame.
func noise(l *lane, _ request) error {
	return l.forever(io.MultiReader(bytes.NewReader(junk()), endless{}))
}

// anotherProtocol is no preface.
func anotherProtocol(l *lane) {
	_, _ = io.WriteString(l, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
	_, _ = io.Copy(io.Discard, l.r)
}

// silence takes all that is said.
func silence(l *lane) { _, _ = io.Copy(io.Discard, l.r) }

// forever sends what does not end, until the other side has had enough.
func (l *lane) forever(r io.Reader) error {
	_, err := io.Copy(l, r)
	return err
}

// endless is 0xff without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0xff
	}
	return len(p), nil
}
