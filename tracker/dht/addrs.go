package dht

import (
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Bounds of the addresses of one site.
const (
	maxAddrs    = 8
	maxAddrSize = 256 // bytes
)

// withdrawn is the address of a site that has a blob no more: kad-dht has no message
// to take a record back, and does not pass on one without an address. The name is
// one that never resolves (RFC 6761, 6.4).
var withdrawn = ma.StringCast("/dns/withdrawn.invalid")

func takesBack(addrs []ma.Multiaddr) bool { return len(addrs) == 1 && addrs[0].Equal(withdrawn) }

// sound returns those of a site's addresses that others may dial, [maxAddrs] at most:
// those that are reached from everywhere first. Without loopback such are left out: they
// would lead everybody to himself.
func sound(addrs []ma.Multiaddr, loopback bool) []ma.Multiaddr {
	var near, far []ma.Multiaddr
	for _, a := range addrs {
		switch {
		case len(a) == 0, len(a.Bytes()) > maxAddrSize, a.Equal(withdrawn), manet.IsIPUnspecified(a), manet.IsIPLoopback(a) && !loopback:
		case manet.IsPublicAddr(a) || throughHub(a):
			far = append(far, a)
		default:
			near = append(near, a)
		}
	}
	all := append(far, near...)
	return all[:min(len(all), maxAddrs)]
}

func throughHub(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}
