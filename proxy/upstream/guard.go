package upstream

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
)

// reserved are addresses that are not of the public Internet, beside those that
// [netip.Addr] knows (IANA special-purpose registries).
var reserved = func() []netip.Prefix {
	var all []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "240.0.0.0/4", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32", "2002::/16", "fec0::/10", "::/96",
	} {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}()

// PublicOnly refuses addresses that are not of the public Internet: loopback,
// link-local, private and reserved ones, and those that tunnel IPv4. It is a
// [Config.Control].
func PublicOnly(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q is not understood, and refused", address)
	}
	if !public(at.Addr()) {
		return fmt.Errorf("address %s is not public, and refused unless a setting names its host as an upstream", at.Addr())
	}
	return nil
}

func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range reserved {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// viaProxyKey marks, in the context of a dial, a connection to the proxy that the
// environment names, which is the operator's choice.
type viaProxyKey struct{}

// dial connects to what a setting names, or to what Control allows. The check is
// on the address that is dialled, after names have been resolved.
func (c Config) dial() func(ctx context.Context, network, address string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: c.signs()}
	if c.Control == nil {
		return plain.DialContext
	}
	guarded := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: c.signs(), Control: func(network, address string, conn syscall.RawConn) error {
		if err := c.Control(network, address, conn); err != nil {
			return &addressError{err}
		}
		return nil
	}}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if ctx.Value(viaProxyKey{}) != nil || c.named(address) {
			return plain.DialContext(ctx, network, address)
		}
		return guarded.DialContext(ctx, network, address)
	}
}

// signs says when the system asks the other end of a connection for a sign of life. Who reads an answer
// has nothing under way that would be missed.
func (c Config) signs() net.KeepAliveConfig {
	if c.DeadAfter == 0 {
		return net.KeepAliveConfig{Enable: true}
	}
	const asked = 2 // times, within the second half
	return net.KeepAliveConfig{Enable: true, Idle: c.DeadAfter / 2, Interval: c.DeadAfter / 2 / asked, Count: asked}
}

func (c Config) named(address string) bool {
	return c.Named != nil && c.Named(strings.ToLower(address))
}

// throughProxy returns the context of a request that goes through the
// environment's proxy. There the proxy resolves names, so that what can be
// checked is an address in the URL itself.
func (c Config) throughProxy(ctx context.Context, req *http.Request) (context.Context, error) {
	if c.Dial != nil {
		return ctx, nil
	}
	via, err := proxyFromEnvironment(req)
	if err != nil || via == nil || c.Control == nil {
		return ctx, err
	}
	return c.checkProxied(ctx, req)
}

func (c Config) checkProxied(ctx context.Context, req *http.Request) (context.Context, error) {
	host := req.URL.Hostname()
	if !c.named(net.JoinHostPort(host, port(req.URL))) {
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		last := host[strings.LastIndexByte(host, '.')+1:]
		switch {
		case last == "localhost":
			host = "127.0.0.1"
		case !strings.Contains(host, ":") && (last == "" || strings.HasPrefix(last, "0x") || strings.Trim(last, "0123456789") == ""):
			if _, err := netip.ParseAddr(host); err != nil { // some proxies read 127.1 or 2130706433 as addresses
				return ctx, &addressError{fmt.Errorf("host %q is no name, and refused", host)}
			}
		}
		if a, err := netip.ParseAddr(host); err == nil {
			if err := c.Control("tcp", netip.AddrPortFrom(a, 0).String(), nil); err != nil {
				return ctx, &addressError{err}
			}
		}
	}
	return context.WithValue(ctx, viaProxyKey{}, true), nil
}

// Address returns the host and port that a registry URL is dialled at, in lower
// case, as [Config.Named] is asked for it.
func Address(u *url.URL) string {
	return strings.ToLower(net.JoinHostPort(u.Hostname(), port(u)))
}
