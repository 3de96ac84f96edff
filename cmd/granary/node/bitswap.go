package node

import (
	"context"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/p2p/bitswap"
	"github.com/granary-oci/granary/p2p/site"
)

// BitswapConfig says whether chunks are exchanged with IPFS's nodes.
type BitswapConfig struct {
	BitswapListen []string `name:"bitswap-listen" placeholder:"MULTIADDR" help:"Address at which anybody gets chunks of public repositories by IPFS's bitswap, as in /ip4/0.0.0.0/tcp/4001. May be repeated. Default: none."`
	BitswapPeer   []string `name:"bitswap-peer" placeholder:"MULTIADDR/p2p/ID" help:"Node that is asked for chunks by bitswap when public images are preheated, before members and registries are. May be repeated."`
}

// bitswapKey is the key that the node is known by to those it exchanges chunks with: another one than
// its cluster knows it by.
const bitswapKey = "bitswap.key"

// openBitswap begins to exchange chunks, if that is wanted.
func (n *Node) openBitswap() error {
	peers, err := bitswap.ParsePeers(n.cfg.BitswapPeer)
	if err != nil {
		return &SettingError{"bitswap-peer", err}
	}
	if len(n.cfg.BitswapListen) == 0 && len(peers) == 0 {
		return nil
	}
	identity, err := n.identityIn(bitswapKey)
	if err != nil {
		return err
	}
	var listen []ma.Multiaddr
	for _, s := range n.cfg.BitswapListen {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return &SettingError{"bitswap-listen", err}
		}
		listen = append(listen, a)
	}
	named := func(id peer.ID) bool {
		return slices.ContainsFunc(peers, func(p peer.AddrInfo) bool { return p.ID == id })
	}
	host, err := site.NewHost(site.Config{Identity: identity, Listen: listen, Allow: named, Strangers: true, Log: n.log})
	if err != nil {
		return &SettingError{"bitswap-listen", err}
	}
	n.bitswap = bitswap.New(bitswap.Config{Host: host, Peers: peers, Blocks: n.registry, Exchanged: n.metrics.countBitswap, Log: n.log})
	n.closers = append(n.closers, n.bitswap.Close)
	return nil
}

// BitswapAddrs returns where others exchange chunks with the node, as they name it.
func (n *Node) BitswapAddrs() []string {
	if n.bitswap == nil {
		return nil
	}
	return n.bitswap.Addrs()
}

// swarm are the peers of a node that is not there yet when its registry is made.
type swarm struct{ n *Node }

// Fetch implements [proxy.Swarm].
func (s swarm) Fetch(ctx context.Context, want []digest.Digest, yield func(digest.Digest, []byte) error) error {
	return s.n.bitswap.Fetch(ctx, want, yield)
}

func (m *metrics) countBitswap(in, out int64) {
	m.bitswap.WithLabelValues("in").Add(float64(in))
	m.bitswap.WithLabelValues("out").Add(float64(out))
}
