package dht

import (
	"context"
	"errors"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"
)

// wire is what an announcer has other sites told by.
type wire struct{ t *Tracker }

func (w wire) lookup(ctx context.Context, key multihash.Multihash) ([]peer.ID, error) {
	return w.t.dht.GetClosestPeers(ctx, string(key))
}

// send tells one site. There is no answer: that it has been sent is all that is known.
func (w wire) send(ctx context.Context, to peer.ID, key []byte, takesBack bool) error {
	addrs := []ma.Multiaddr{withdrawn}
	if !takesBack {
		addrs = w.t.sound(w.t.host.Addrs())
	}
	if len(addrs) == 0 {
		return errors.New("this site has no address that it is reached at")
	}
	m := pb.NewMessage(pb.Message_ADD_PROVIDER, key, 0)
	m.ProviderPeers = pb.RawPeerInfosToPBPeers([]peer.AddrInfo{{ID: w.t.host.ID(), Addrs: addrs}})
	return w.t.dht.MessageSender().SendMessage(ctx, to, m)
}
