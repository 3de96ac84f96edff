package node

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/p2p/site"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/dht"
)

const (
	maxHolders  = 8 // sites that are looked for, of a blob
	networkLook = 10 * time.Minute
	maxNetNews  = 1024 // blobs that have come or gone since somebody looked
)

// network is a node's part in a network of sites that find each other's blobs.
type network struct {
	tracker *dht.Tracker
	news    chan digest.Digest
	told    map[digest.Digest]bool // what is announced; run's own
}

// openNetwork joins the network of sites that the settings name, if they do.
func (n *Node) openNetwork() error {
	if n.cfg.SiteNetwork == "" {
		return nil
	}
	cfg := dht.Config{Network: n.cfg.SiteNetwork, Log: n.log}
	var err error
	if cfg.Bootstrap, err = sites(append(n.dialledParents(), n.cfg.SiteJoin...)); err != nil {
		return &SettingError{"site-join", err}
	}
	for _, info := range cfg.Bootstrap {
		cfg.Loopback = cfg.Loopback || slices.ContainsFunc(info.Addrs, isLoopback)
	}
	if listen, err := multiaddrs(n.cfg.SiteListen); err == nil {
		cfg.Loopback = cfg.Loopback || slices.ContainsFunc(listen, isLoopback)
	}
	if len(n.cfg.SiteListen) == 0 {
		cfg.Mode = dht.Client
	}
	t, err := dht.New(context.Background(), n.site.Host, cfg)
	if err != nil {
		return &SettingError{"site-network", err}
	}
	n.closers = append(n.closers, t.Close) // and others remember, for it may be back soon
	n.network.Store(&network{tracker: t, news: make(chan digest.Digest, maxNetNews), told: make(map[digest.Digest]bool)})
	return nil
}

func isLoopback(a ma.Multiaddr) bool {
	ip, err := a.ValueForProtocol(ma.P_IP4)
	return err == nil && ip == "127.0.0.1"
}

// watch is told what becomes of blobs in the store.
func (t *network) watch(d digest.Digest, e chunkstore.Event) {
	if e != chunkstore.Completed && e != chunkstore.Lost {
		return
	}
	select {
	case t.news <- d:
	default: // all are looked at soon
	}
}

// run announces what is public and complete here, until ctx ends.
func (t *network) run(ctx context.Context, n *Node) {
	tick := time.NewTicker(networkLook)
	defer tick.Stop()
	t.lookAtAll(n)
	for {
		select {
		case d := <-t.news:
			t.look(n, d)
		case <-tick.C:
			t.lookAtAll(n)
		case <-ctx.Done():
			return
		}
	}
}

func (t *network) lookAtAll(n *Node) {
	if n.store.Disk == nil {
		return
	}
	for d := range t.told {
		t.look(n, d)
	}
	for _, d := range n.store.Disk.Completed() {
		t.look(n, d)
	}
}

// look announces a blob, or takes that back.
func (t *network) look(n *Node, d digest.Digest) {
	has := n.store.Proven(d) && n.registry.Public(d)
	switch {
	case has && !t.told[d]:
		t.tracker.Announce(d)
		t.told[d] = true
	case !has && t.told[d]:
		t.tracker.Withdraw(d)
		delete(t.told, d)
	}
}

// find is a [parent.Finder].
func (n *Node) find(ctx context.Context, d digest.Digest) (all []parent.Config, err error) {
	peers, err := n.network.Load().tracker.Providers(ctx, d, maxHolders)
	for _, p := range peers {
		c, cerr := n.foundConfig(p)
		if cerr != nil {
			n.log.Debug("a site that was found cannot be asked", "id", p.ID, "error", cerr)
			continue
		}
		all = append(all, c)
	}
	return all, err
}

// foundConfig says how a site that was found is connected to.
func (n *Node) foundConfig(p tracker.Peer) (c parent.Config, err error) {
	to := new(peer.AddrInfo)
	if to.ID, err = peer.Decode(string(p.ID)); err != nil {
		return c, err
	}
	for _, text := range p.Addrs {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			return c, err
		}
		to.Addrs = append(to.Addrs, a)
	}
	c = n.newParentConfig("")
	c.Name = to.ID.String()
	c.Upstream.URL = "http://" + c.Name
	c.Upstream.Header.Set("Cache-Control", onlyHere)
	c.Upstream.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return n.dialFound(ctx, to) }
	n.counting(&c, foundLink, nil)
	return c, nil
}

// dialFound connects to a site that was found, which is one of the network only if it has the token that this
// node has: anybody may say in a distributed hash table that he has a blob.
func (n *Node) dialFound(ctx context.Context, to *peer.AddrInfo) (net.Conn, error) {
	if n.cfg.ParentTokenFile == "" {
		return nil, errors.New("without --parent-token-file no site that is found is known to be one of the network")
	}
	token, err := firstToken(n.cfg.ParentTokenFile)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256([]byte(token))
	return site.Dial(ctx, n.site.Host, *to, shown(key, n.site.ID(), to.ID), func(said site.Hello) error {
		if want := shown(key, to.ID, n.site.ID()); !hmac.Equal(said[:], want[:]) {
			return errors.New("it has not shown that it has the token")
		}
		return nil
	})
}

// foundLink is what all sites that are found are counted as.
const foundLink = "sites that are found"
