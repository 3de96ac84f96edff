package gossip

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/memberlist"

	"github.com/granary-oci/granary/tracker"
)

// Limits of what a member may say of itself, in bytes. They keep its words within
// [memberlist.MetaMaxSize], and out of the logs of others what does not belong there.
const (
	maxID    = 128
	maxName  = 64
	maxZone  = 63 // a label of Kubernetes
	maxAddr  = 128
	maxAddrs = 8
)

// nodeName returns the name in memberlist of a peer that was started at boot, in
// nanoseconds since 1970.
func nodeName(id tracker.ID, boot uint64) string {
	return string(id) + "@" + strconv.FormatUint(boot, 16)
}

// parseNodeName is the inverse of nodeName.
func parseNodeName(name string) (id tracker.ID, boot uint64, err error) {
	before, after, _ := strings.Cut(name, "@")
	id = tracker.ID(before)
	boot, err = strconv.ParseUint(after, 16, 64)
	if err != nil || !validID(id) || nodeName(id, boot) != name {
		return "", 0, fmt.Errorf("%.200q is not a peer ID and a time", name)
	}
	return id, boot, nil
}

const alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// validID reports whether id may be a peer ID: they are in base58, or base36.
func validID(id tracker.ID) bool {
	return id != "" && len(id) <= maxID && strings.Trim(string(id), alphanumeric) == ""
}

// The metadata of a member is
//
//	version   1 byte, 1
//	flags     1 byte: 1 draining
//	weight    1 byte
//	zone      1 byte of length, and as many bytes
//	name      the same
//	addresses 1 byte of count, and each like the zone
//
// What follows is left to later versions. Those that a member of version 1 would
// not understand have another first byte, and are no peers to it.
const (
	metaVersion  = 1
	flagDraining = 1
)

// encodeMeta returns the metadata of a peer. The name, which is for people, is cut
// where it is too long; all else must be within the limits.
func encodeMeta(p tracker.Peer) ([]byte, error) {
	p.Name = clip(p.Name)
	if err := check(p); err != nil {
		return nil, err
	}
	flags := byte(0)
	if p.Draining {
		flags |= flagDraining
	}
	meta := []byte{metaVersion, flags, byte(p.Weight)}
	meta = appendString(meta, p.Zone)
	meta = appendString(meta, p.Name)
	meta = append(meta, byte(len(p.Addrs)))
	for _, a := range p.Addrs {
		meta = appendString(meta, a)
	}
	if len(meta) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("name, zone and addresses take %d bytes, more than %d", len(meta), memberlist.MetaMaxSize)
	}
	return meta, nil
}

func appendString(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// decodeMeta returns what metadata says of a peer, without its ID.
func decodeMeta(meta []byte) (p tracker.Peer, err error) {
	if len(meta) < 3 || meta[0] != metaVersion {
		return p, errors.New("metadata is not of version 1")
	}
	p.Draining = meta[1]&flagDraining != 0
	p.Weight = int(meta[2])
	r := reader{meta[3:], true}
	p.Zone = r.string()
	p.Name = r.string()
	n := int(r.byte())
	if n > maxAddrs {
		return p, fmt.Errorf("metadata has %d addresses", n)
	}
	for range n {
		p.Addrs = append(p.Addrs, r.string())
	}
	if !r.ok {
		return p, errors.New("metadata ends early")
	}
	return p, check(p)
}

// check returns an error for a peer that no member may say to be.
func check(p tracker.Peer) error {
	switch {
	case p.Weight < 0 || p.Weight > tracker.MaxWeight:
		return fmt.Errorf("weight is %d", p.Weight)
	case len(p.Zone) > maxZone || !printable(p.Zone):
		return fmt.Errorf("zone %.200q is too long, or not printable", p.Zone)
	case len(p.Name) > maxName || !printable(p.Name):
		return fmt.Errorf("name %.200q is too long, or not printable", p.Name)
	case len(p.Addrs) > maxAddrs:
		return fmt.Errorf("there are %d addresses, more than %d", len(p.Addrs), maxAddrs)
	}
	for _, a := range p.Addrs {
		if len(a) > maxAddr || !strings.HasPrefix(a, "/") || strings.Contains(a, " ") || !printable(a) {
			return fmt.Errorf("address %.200q is not a multiaddr", a)
		}
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// clip returns as much of a host's name as others are told.
func clip(name string) string {
	name = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, name)
	for len(name) > maxName {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return name
}

// reader takes strings off b. Past its end there is nothing, and ok is false.
type reader struct {
	b  []byte
	ok bool
}

func (r *reader) byte() byte {
	p := r.take(1)
	if p == nil {
		return 0
	}
	return p[0]
}

func (r *reader) string() string { return string(r.take(int(r.byte()))) }

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.ok = nil, false
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

// reachable returns multiaddrs with the addresses that they lack: a member that
// listens on all of its addresses, or does not say on which, is reached at the one
// that it gossips from.
func reachable(addrs []string, ip netip.Addr) []string {
	var filled []string
	for _, a := range addrs {
		if a = withIP(a, ip); !slices.Contains(filled, a) {
			filled = append(filled, a)
		}
	}
	return filled
}

func withIP(addr string, ip netip.Addr) string {
	parts := strings.SplitN(addr, "/", 4) // "", the protocol, its value, and the rest
	switch {
	case !ip.IsValid() || len(parts) < 3:
		return addr
	case parts[1] == "tcp" || parts[1] == "udp":
		return multiaddr(ip) + addr
	case parts[1] != "ip4" && parts[1] != "ip6" || len(parts) < 4:
		return addr
	}
	if listens, err := netip.ParseAddr(parts[2]); err != nil || !listens.IsUnspecified() {
		return addr
	}
	return multiaddr(ip) + "/" + parts[3]
}

func multiaddr(ip netip.Addr) string {
	if ip.Is4() {
		return "/ip4/" + ip.String()
	}
	return "/ip6/" + ip.WithZone("").String()
}
