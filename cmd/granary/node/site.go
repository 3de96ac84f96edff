package node

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/granary-oci/granary/p2p/site"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/ref"
)

// SiteConfig says what a node is to other sites, and where it is reached by them.
type SiteConfig struct {
	SiteListen    []string `name:"site-listen" placeholder:"MULTIADDR" help:"Address at which nodes of other sites reach this one as a parent, as /ip4/0.0.0.0/udp/5054/quic-v1 or /ip4/0.0.0.0/tcp/5054. May be repeated. Default: none."`
	SiteAdvertise []string `name:"site-advertise" placeholder:"MULTIADDR" help:"Address at which this node is reached that it cannot know of, such as a port that a router forwards. May be repeated."`
	Child         []string `name:"child" placeholder:"ID" help:"Node of another site that may ask this one at --site-listen, by the ID that its status tells. May be repeated. Others show a token of --gateway-token-file."`

	SiteNetwork      string   `name:"site-network" placeholder:"NAME" help:"Network of sites that find each other's public blobs, by a distributed hash table. Sites that have a blob are asked for it after the parents and before the registry. Default: none."`
	SiteJoin         []string `name:"site-join" placeholder:"MULTIADDR" help:"Site of that network, to be met first, as /ip4/192.0.2.1/udp/5054/quic-v1/p2p/ID. Parents are too. May be repeated."`
	SiteRelay        []string `name:"site-relay" placeholder:"MULTIADDR" help:"Site through which others reach this one, which they cannot dial: then both try to reach each other directly. May be repeated."`
	SiteRelayService bool     `name:"site-relay-service" help:"Connect others to sites that cannot be dialled. For a site that all can dial."`
}

// siteHost is a node as other sites meet it.
type siteHost struct {
	*site.Host
	children map[peer.ID]bool
}

// needsSite reports whether the node meets other sites by libp2p.
func (n *Node) needsSite() bool {
	return len(n.cfg.SiteListen) > 0 || n.cfg.SiteNetwork != "" || slices.ContainsFunc(n.cfg.Parent, isMultiaddr)
}

// hasChildren reports whether other sites may have the node as a parent.
func (n *Node) hasChildren() bool {
	return len(n.cfg.SiteListen) > 0 || n.gateway != nil && n.tokens != nil
}

// dialledParents returns the parents at multiaddrs.
func (n *Node) dialledParents() []string {
	return slices.DeleteFunc(slices.Clone(n.cfg.Parent), func(a string) bool { return !isMultiaddr(a) })
}

func isMultiaddr(address string) bool { return strings.HasPrefix(address, "/") }

// openSite makes the host for other sites, if there is to be one.
func (n *Node) openSite() error {
	if !n.needsSite() {
		return n.cfg.SiteConfig.unused()
	}
	cfg := site.Config{Log: n.log, RelayService: n.cfg.SiteRelayService}
	var err error
	if cfg.Listen, err = multiaddrs(n.cfg.SiteListen); err != nil {
		return &SettingError{"site-listen", err}
	}
	if cfg.Advertise, err = multiaddrs(n.cfg.SiteAdvertise); err != nil {
		return &SettingError{"site-advertise", err}
	}
	s := &siteHost{children: make(map[peer.ID]bool)}
	for _, text := range n.cfg.Child {
		id, err := peer.Decode(text)
		if err != nil {
			return &SettingError{"child", fmt.Errorf("%q: %w", text, err)}
		}
		s.children[id] = true
	}
	if len(cfg.Listen) > 0 && len(s.children) == 0 && n.tokens == nil {
		return &SettingError{"site-listen", errors.New("nobody may ask there without --child or --gateway-token-file")}
	}
	if cfg.Relays, err = sites(n.cfg.SiteRelay); err != nil {
		return &SettingError{"site-relay", err}
	}
	dialled, err := sites(slices.Concat(n.dialledParents(), n.cfg.SiteJoin, n.cfg.SiteRelay))
	if err != nil {
		return &SettingError{"parent", err}
	}
	met := make(map[peer.ID]bool)
	for _, info := range dialled {
		met[info.ID] = true
	}
	// Others are known by a token, which they show when they ask, and in a network of sites not before they are met.
	open := len(s.children) == 0 && n.cfg.SiteNetwork != "" || n.tokens != nil && len(cfg.Listen) > 0
	cfg.Allow = func(id peer.ID) bool { return open || s.children[id] || met[id] }
	cfg.Identity = n.identity
	if s.Host, err = site.NewHost(cfg); err != nil {
		return &SettingError{"site-listen", err}
	}
	n.site = s
	n.closers = append(n.closers, s.Close)
	return n.openNetwork()
}

// unused returns an error about a setting that says something of other sites, of which none are met.
func (c SiteConfig) unused() error {
	switch {
	case len(c.Child) > 0:
		return &SettingError{"child", errors.New("there is no --site-listen at which it could ask")}
	case len(c.SiteAdvertise) > 0:
		return &SettingError{"site-advertise", errors.New("there is no --site-listen")}
	case c.SiteRelayService:
		return &SettingError{"site-relay-service", errors.New("there is no --site-listen")}
	case len(c.SiteRelay) > 0:
		return &SettingError{"site-relay", errors.New("there is no --site-listen and no --site-network")}
	case len(c.SiteJoin) > 0:
		return &SettingError{"site-join", errors.New("there is no --site-network")}
	}
	return nil
}

func multiaddrs(texts []string) (all []ma.Multiaddr, err error) {
	for _, text := range texts {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// sites returns what multiaddrs with IDs say.
func sites(texts []string) (all []peer.AddrInfo, err error) {
	for _, text := range texts {
		info, err := peer.AddrInfoFromString(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		all = append(all, *info)
	}
	return all, nil
}

// siteID is what other sites know the node by, "" if it meets none by libp2p.
func (n *Node) siteID() string {
	if n.site == nil {
		return ""
	}
	return n.site.ID().String()
}

// SiteAddrs returns the multiaddrs at which other sites reach the node, to be given as --parent, or none.
func (n *Node) SiteAddrs() (all []string) {
	if n.site == nil || len(n.cfg.SiteListen) == 0 {
		return nil
	}
	for _, a := range n.site.Addrs() {
		all = append(all, a.String()+"/p2p/"+n.site.ID().String())
	}
	return all
}

// overLibp2p says how parents at multiaddrs of one ID are connected to.
func (n *Node) overLibp2p(c *parent.Config, to *peer.AddrInfo) {
	c.Name = to.ID.String()
	c.Upstream.URL = "http://" + c.Name // inside an encrypted stream
	c.Upstream.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		hello, err := n.hello(to.ID)
		if err != nil {
			return nil, err
		}
		return site.Dial(ctx, n.site.Host, *to, hello, func(site.Hello) error { return nil })
	}
}

// shown is what one site shows another, by which it is seen to have a token, without the token: nobody can use
// it who is not at the same ends. key is the token's SHA-256.
func shown(key [sha256.Size]byte, from, to peer.ID) (h site.Hello) {
	mac := hmac.New(sha256.New, key[:])
	fmt.Fprintf(mac, "granary site 1\n%s\n%s", from, to)
	return site.Hello(mac.Sum(nil))
}

// byID is the answer to a child that is known by its ID.
var byID = site.Hello{1}

// hello is what this node says to another site: that it has a token, if it has one.
func (n *Node) hello(to peer.ID) (h site.Hello, err error) {
	if n.cfg.ParentTokenFile == "" {
		return h, nil
	}
	token, err := firstToken(n.cfg.ParentTokenFile)
	return shown(sha256.Sum256([]byte(token)), n.site.ID(), to), err
}

// greet answers a site that would be a child.
func (n *Node) greet(from peer.ID, said site.Hello) (reply site.Hello) {
	if n.tokens != nil {
		for _, key := range n.tokens.current() {
			if want := shown(key, from, n.site.ID()); hmac.Equal(said[:], want[:]) {
				return shown(key, n.site.ID(), from)
			}
		}
	}
	if n.site.children[from] {
		return byID
	}
	return reply
}

// onlyHere in a request asks for what is here, and not for what this node would have to fetch (RFC 9111,
// section 5.2.1.7): who was found to have a blob is not to get it for others.
const onlyHere = "only-if-cached"

// siteFace is the registry face as children see it.
func (n *Node) siteFace() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cache-Control") == onlyHere {
			q, err := ref.ParsePath(r.URL.Path, r.URL.Query()["ns"], n.cfg.DefaultUpstream)
			if err != nil || q.Kind != ref.Blob || !n.store.Proven(q.Digest) {
				w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
				http.Error(w, "it is not here", http.StatusNotFound)
				return
			}
		}
		n.handler.ServeHTTP(w, r)
	})
}

// serveSite answers children until the server is closed.
func (n *Node) serveSite(s *http.Server) error {
	child := func(c net.Conn) string { return "child " + c.(site.Conn).Peer().String() }
	return s.Serve(crossings{site.Listen(n.site, n.greet), n, child})
}
