package p2p

import (
	"context"
	"io"
	"time"

	"github.com/granary-oci/granary/tracker"
)

// Stream is a two-way stream of bytes between two members: a lane. One goroutine
// reads and one writes; Close may be called by any, ends both sides at once, and
// loses what is under way.
type Stream interface {
	io.ReadWriteCloser
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Transport opens streams to members. Its streams are encrypted, and each side
// knows whom it talks to.
type Transport interface {
	// Open opens a stream to a peer. It returns soon after ctx ends; the stream
	// outlives ctx.
	Open(ctx context.Context, peer tracker.Peer) (Stream, error)
	// Handle makes handle be called for each stream that a member opens, in a
	// goroutine of its own, with the ID that the member has proven to be its own.
	// It is called once, before the first stream may arrive.
	Handle(handle func(from tracker.ID, s Stream))
}
