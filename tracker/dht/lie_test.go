package dht

import (
	"crypto/rand"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"github.com/libp2p/go-msgio/pbio"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"
)

func unmarshal(p []byte, m *pb.Message) error { return proto.Unmarshal(p, m) }

// lie is a handler that answers each question about providers with 2,000, of which
// every other one has an address, too many or one that leads nowhere.
func lie() network.StreamHandler {
	var infos []peer.AddrInfo
	for i := range 2000 {
		_, public, _ := crypto.GenerateEd25519Key(rand.Reader)
		id, _ := peer.IDFromPublicKey(public)
		info := peer.AddrInfo{ID: id}
		switch i % 4 {
		case 1:
			info.Addrs = []ma.Multiaddr{ma.StringCast("/ip4/0.0.0.0/tcp/1")}
		case 2:
			for range 50 {
				info.Addrs = append(info.Addrs, ma.StringCast("/ip4/192.0.2.1/tcp/1"))
			}
		case 3:
			info.Addrs = []ma.Multiaddr{withdrawn}
		}
		infos = append(infos, info)
	}
	return func(s network.Stream) {
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(5 * time.Second))
		r := msgio.NewVarintReaderSize(s, 4<<20)
		for {
			p, err := r.ReadMsg()
			m := new(pb.Message)
			if err != nil || unmarshal(p, m) != nil {
				return
			}
			answer := pb.NewMessage(m.Type, m.Key, 0)
			if m.Type == pb.Message_GET_PROVIDERS {
				answer.ProviderPeers = pb.RawPeerInfosToPBPeers(infos)
			}
			if pbio.NewDelimitedWriter(s).WriteMsg(answer) != nil {
				return
			}
		}
	}
}
