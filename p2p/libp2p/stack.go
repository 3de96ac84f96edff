package libp2p

import (
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
)

// Limits. Loopback addresses have none of those per address.
const (
	handshakeTime = 5 * time.Second // of a connection that comes in
	maxHandshakes = 256             // under way, of connections that come in
	maxPerAddress = 128             // connections from and to one IP address; members may share one
	maxPerMember  = 16              // connections from one member
	maxLanes      = 256             // streams that one connection's other side may open
	maxWindows    = 2 << 30         // bytes; yamux grows windows only within the lower half
)

// The same for strangers. A stream is worth up to 4 MiB of memory to who begins a large message and
// never ends it. But bitswap answers on many at once, and what is refused is not sent again.
const (
	maxStrangers         = 128 // connections that come in
	maxStrangerConns     = 4   // from one peer
	maxStrangerStreams   = 512 // of all
	maxStrangerLanes     = 64  // of one peer
	maxStrangersPerPlace = 32  // connections from and to one IP address
	maxStrangerWindows   = 256 << 20
)

// newTransport returns libp2p's way from an address to a connection with streams.
func newTransport(i *Identity, resources network.ResourceManager, allow Gate) (*tcp.TcpTransport, error) {
	up, err := NewUpgrader(i, resources, allow)
	if err != nil {
		return nil, err
	}
	// See the package's comment for why the listening port is not reused.
	return tcp.NewTCPTransport(up, resources, nil, tcp.DisableReuseport(), tcp.WithConnectionTimeout(openTime))
}

// NewUpgrader returns what makes of a TCP connection a secure one with streams, of
// which the other side may open 256.
func NewUpgrader(i *Identity, resources network.ResourceManager, allow Gate) (transport.Upgrader, error) {
	mux := *yamux.DefaultTransport // whose window, 16 MiB, is what makes distant members fast
	mux.MaxIncomingStreams = maxLanes
	mux.MaxMessageSize = messageSize
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: &mux}}
	overTLS, err := tls.New(tls.ID, i.key, muxers)
	if err != nil {
		return nil, err
	}
	overNoise, err := noise.New(noise.ID, i.key, muxers)
	if err != nil {
		return nil, err
	}
	return upgrader.New([]sec.SecureTransport{buffered{overTLS}, buffered{overNoise}}, muxers, nil, resources, allow, upgrader.WithAcceptTimeout(handshakeTime))
}

// NewResources bounds what the other sides may make a node do; they may have so many
// connections, 0 as many as they like.
func NewResources(conns int) (network.ResourceManager, error) {
	return newLimits(rcmgr.PartialLimitConfig{
		System:      rcmgr.ResourceLimits{Memory: maxWindows, ConnsInbound: rcmgr.LimitVal(conns)},
		Transient:   rcmgr.ResourceLimits{ConnsInbound: maxHandshakes},
		PeerDefault: rcmgr.ResourceLimits{ConnsInbound: maxPerMember},
	}, maxPerAddress)
}

// NewStrangersResources bounds what anybody may make a node do.
func NewStrangersResources() (network.ResourceManager, error) {
	return newLimits(rcmgr.PartialLimitConfig{
		System:      rcmgr.ResourceLimits{Memory: maxStrangerWindows, ConnsInbound: maxStrangers, StreamsInbound: maxStrangerStreams},
		Transient:   rcmgr.ResourceLimits{ConnsInbound: maxStrangers},
		PeerDefault: rcmgr.ResourceLimits{ConnsInbound: maxStrangerConns, StreamsInbound: maxStrangerLanes},
	}, maxStrangersPerPlace)
}

// newLimits has these limits and no others. Without a limiter of its own libp2p allows an
// address one connection per 5 s, in either direction.
func newLimits(limits rcmgr.PartialLimitConfig, perAddress int) (network.ResourceManager, error) {
	perIP4 := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: perAddress}}
	perIP6 := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 128, ConnCount: perAddress}}
	return rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)),
		rcmgr.WithLimitPerSubnet(perIP4, perIP6),
		rcmgr.WithConnRateLimiters(new(rate.Limiter)),
		rcmgr.WithMetricsDisabled(),
	)
}

// Gate says who may connect. It implements libp2p's ConnectionGater: it is asked as
// soon as the other side has proven its ID, and before somebody is dialled.
type Gate func(peer.ID) bool

// InterceptSecured implements libp2p's ConnectionGater.
func (g Gate) InterceptSecured(_ network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	return g(id)
}

// InterceptPeerDial implements libp2p's ConnectionGater; only libp2p's host calls it.
func (g Gate) InterceptPeerDial(id peer.ID) bool { return g(id) }

// InterceptAccept implements libp2p's ConnectionGater: nothing is known yet.
func (g Gate) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptAddrDial implements libp2p's ConnectionGater; only libp2p's host calls it.
func (g Gate) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

// InterceptUpgraded implements libp2p's ConnectionGater; only libp2p's host calls it.
func (g Gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
