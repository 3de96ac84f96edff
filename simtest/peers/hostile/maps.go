package hostile

import (
	"bytes"
	"io"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
)

// Mapping has no chunk of any blob, and gives as the digests of n chunks, from chunk first on,
// whatever digests returns. name and state are those of a [Behaviour].
func Mapping(name, state string, digests func(first, n int) []byte) Behaviour {
	return Behaviour{Name: name, State: state, chunks: nothing, digest: func(l *lane, id uint32, p wire.Part) error {
		body := digests(int(p.Offset/chunk.DigestSize), int(p.Size/chunk.DigestSize))
		return l.write(wire.Frame{Type: wire.TypeAnswer, ID: id, Header: wire.Answer{}.Header(), Body: body})
	}}
}

// Maps are members that give no map, each in its way.
var Maps = []Behaviour{
	{Name: "endless-waiting", State: up, chunks: nothing, digest: endlessWaiting},
	{Name: "endless-map", State: quarantined, chunks: nothing, digest: endlessMap},
	{Name: "silence-about-maps", State: up, chunks: nothing, digest: func(*lane, uint32, wire.Part) error { return nil }},
	Mapping("short-map", quarantined, func(_, n int) []byte { return make([]byte, n*chunk.DigestSize-1) }),
	Mapping("long-map", quarantined, func(_, n int) []byte { return make([]byte, (n+1)*chunk.DigestSize) }),
	Mapping("map-of-junk", up, func(_, n int) []byte { return junk()[:n*chunk.DigestSize] }),
}

func nothing(l *lane, q request) error { return l.end(q, wire.TypeNotFound) }

// endlessWaiting says for ever that it is at it.
func endlessWaiting(l *lane, id uint32, _ wire.Part) error {
	go func() {
		for l.write(wire.Frame{Type: wire.TypeProgress, ID: id, Header: wire.Progress{}.Header()}) == nil {
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return nil
}

// endlessMap is a frame that is larger than any may be, and never ends.
func endlessMap(l *lane, id uint32, _ wire.Part) error {
	head := []byte{byte(wire.TypeAnswer), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id), 0, 0, 0, 0xff, 0, 0, 0}
	return l.forever(io.MultiReader(bytes.NewReader(head), endless{}))
}
