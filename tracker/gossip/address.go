package gossip

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// sourceIP returns the address of this host that others see it at, as far as it can
// tell, for one that listens on all addresses of a family: that of the route to the
// world, or the first one that is not for this host alone.
func sourceIP(unspecified netip.Addr) netip.Addr {
	network, world, loopback := "udp4", "192.0.2.1:9", netip.AddrFrom4([4]byte{127, 0, 0, 1}) // RFC 5737
	if unspecified.Is6() {
		network, world, loopback = "udp6", "[2001:db8::1]:9", netip.IPv6Loopback() // RFC 3849
	}
	if c, err := net.Dial(network, world); err == nil { // which sends nothing
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() == unspecified.Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr()
		}
	}
	return loopback
}

// splitJoin splits an entry of [Config.Join] into host and port: HOST, HOST:PORT, an
// IPv6 address with or without brackets, or one in brackets with a port.
func splitJoin(entry string, port int) (host, p string, err error) {
	p = strconv.Itoa(port)
	if ip, err := netip.ParseAddr(strings.Trim(entry, "[]")); err == nil {
		return ip.String(), p, nil
	}
	if !strings.Contains(entry, ":") {
		host = entry
	} else if host, p, err = net.SplitHostPort(entry); err != nil {
		return "", "", fmt.Errorf("join %q: %w", entry, err)
	}
	if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 || host == "" {
		return "", "", fmt.Errorf("join %q: it is not a host and a port", entry)
	}
	return host, p, nil
}
