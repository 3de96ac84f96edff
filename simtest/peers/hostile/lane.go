package hostile

import (
	"bufio"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// lane is a lane that another member has opened.
type lane struct {
	p2p.Stream
	r      *bufio.Reader
	member *Member
	from   tracker.ID
}

// request is a request for chunks.
type request struct {
	id   uint32
	refs []chunk.Ref
}

// serve answers what is asked on a lane, one request after the other, until the lane
// ends.
func (m *Member) serve(from tracker.ID, s p2p.Stream) {
	defer s.Close()
	l := &lane{s, bufio.NewReader(s), m, from}
	if m.how.greet != nil {
		m.how.greet(l)
		return
	}
	if err := l.greet(); err != nil {
		return
	}
	for {
		f, err := wire.Read(l.r)
		if err == nil {
			err = l.answer(f)
		}
		if err != nil {
			return
		}
	}
}

func (l *lane) greet() error {
	if _, err := wire.ReadPreface(l.r); err != nil {
		return err
	}
	_, err := l.Write(wire.Preface[:])
	return err
}

// answer answers a request; its error ends the lane.
func (l *lane) answer(f wire.Frame) error {
	switch f.Type {
	case wire.TypeCancel:
		return nil
	case wire.TypeGet:
		return l.get(f)
	case wire.TypeMap:
		has := wire.Map{Proven: true, Providers: []tracker.ID{l.member.ID()}}
		return l.write(wire.Frame{Type: wire.TypeMapAnswer, ID: f.ID, Header: has.Header()})
	case wire.TypeAsk:
		q, err := wire.ReadAsk(f.Header)
		if part, malformed := wire.ReadPart(q.Reference); err == nil && malformed == nil && q.Question == wire.Digests && l.member.how.digest != nil {
			l.member.mapped.Add(1)
			return l.member.how.digest(l, f.ID, part)
		}
		why := wire.Unavailable{Message: "ask somebody else"}
		return l.write(wire.Frame{Type: wire.TypeUnavailable, ID: f.ID, Header: why.Header()})
	}
	return l.write(wire.Frame{Type: wire.TypeDone, ID: f.ID})
}

func (l *lane) get(f wire.Frame) error {
	q, err := wire.ReadGet(f.Header)
	if err != nil {
		return err
	}
	grid, err := chunk.Grid(q.Blob, q.Total)
	if err != nil {
		return err
	}
	r := request{id: f.ID}
	for i := range q.Count {
		r.refs = append(r.refs, grid.At(q.First+i))
	}
	l.member.asked.Add(1)
	return l.member.how.chunks(l, r)
}

func (l *lane) write(f wire.Frame) error {
	head, err := f.Head()
	if err == nil {
		_, err = l.Write(append(head, f.Body...))
	}
	return err
}

// end says that all has been said.
func (l *lane) end(q request, t wire.Type) error {
	return l.write(wire.Frame{Type: t, ID: q.id})
}

// send sends p as one of the chunks that were asked for.
func (l *lane) send(q request, ref chunk.Ref, d wire.Data, p []byte) error {
	d.Index = ref.Index()
	return l.write(wire.Frame{Type: wire.TypeData, ID: q.id, Header: d.Header(), Body: p})
}

// claims returns the word of a signer that a chunk is p.
func claims(signer *libp2p.Identity, ref chunk.Ref, p []byte) wire.Claim {
	c := wire.Claim{Digest: digest.FromBytes(p), Signer: signer.ID()}
	return sign(signer, ref, c)
}

func sign(signer *libp2p.Identity, ref chunk.Ref, c wire.Claim) wire.Claim {
	c.Signature, _ = signer.Sign(c.Text(ref)) // without one it is as wrong
	return c
}
