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

// sound returns those of a site's addresses that others may dial, [maxAddrs] at most.
// Without loopback such are left out: they would lead everybody to himself.
func sound(addrs []ma.Multiaddr, loopback bool) []ma.Multiaddr {
	var kept []ma.Multiaddr
	for _, a := range addrs {
		if len(kept) < maxAddrs && len(a) > 0 && len(a.Bytes()) <= maxAddrSize &&
			!a.Equal(withdrawn) && !manet.IsIPUnspecified(a) && (loopback || !manet.IsIPLoopback(a)) {
			kept = append(kept, a)
		}
	}
	return kept
}
