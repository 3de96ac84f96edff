package tracker

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// Tracker says who has a blob. What it says is a hint: who is named may have lost
// the blob since, and who is not may have it. A digest that is none, or of an
// algorithm that it does not know, nobody has. It may be used by several goroutines.
type Tracker interface {
	// Announce tells others, soon and from then on, that this node has all of a
	// blob. It does not wait for that.
	Announce(d digest.Digest)
	// Withdraw takes that back. Who cannot be told will have forgotten it after a
	// time.
	Withdraw(d digest.Digest)
	// Providers returns others that have said that they have all of a blob, n at
	// most, each once, in no order. Nobody is no error; an error says that those who
	// would know could not be asked, or that ctx ended, and may come with who was
	// found until then.
	Providers(ctx context.Context, d digest.Digest, n int) ([]Peer, error)
}
