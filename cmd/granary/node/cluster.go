package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/gossip"

	"github.com/opencontainers/go-digest"
)

const (
	maxProvided    = 1 << 16 // blobs whose providers this node keeps
	providersLive  = 3 * gossip.Refresh
	maxZone        = 63 // bytes
	leaveFor       = 3 * time.Second
	identityName   = "identity.key"
	minPassingRate = 64 << 10 // bytes per second; below, nothing gets anywhere
)

// cluster is what a node is to other members, and they to it. A node alone has
// none.
type cluster struct {
	cfg       ClusterConfig
	log       *slog.Logger
	identity  *libp2p.Identity
	providers *tracker.Providers
	gossip    *gossip.Gossip
	begun     chan struct{} // closed when gossip is there
	host      *libp2p.Host
	client    *p2p.Client
	secrets   []byte // what the file held when it was last read
	claims    string // the file that claims are handed on in; "" for none
}

// clustered reports whether the settings make the node a member of a cluster.
func (c ClusterConfig) clustered() bool { return c.ClusterSecretFile != "" || c.InsecureCluster }

// signer signs with the node's identity.
type signer struct{ *libp2p.Identity }

func (signer) Verify(id tracker.ID, p, signature []byte) bool {
	return libp2p.Verify(id, p, signature)
}

// newCluster opens the ports of a member. It does not wait for others.
func newCluster(cfg ClusterConfig, id *libp2p.Identity, dataDir string, keep bool, m *metrics, t tracing, links func(chunk.Ref) (before, after chunk.Link, ok bool), parents *parent.Parents, log *slog.Logger, report func(error)) (c *cluster, err error) {
	c = &cluster{cfg: cfg, identity: id, log: log, providers: tracker.NewProviders(maxProvided, providersLive), begun: make(chan struct{})}
	secrets, err := c.readSecrets()
	if err != nil {
		return nil, &SettingError{"cluster-secret-file", err}
	}
	c.host, err = libp2p.New(libp2p.Config{Identity: c.identity, Listen: cfg.P2PListen, Members: membership{c}, Log: log})
	if err != nil {
		return nil, &SettingError{"p2p-listen", err}
	}
	name, _ := os.Hostname() // for people alone
	c.gossip, err = gossip.Start(gossip.Config{
		Self:      tracker.Peer{ID: c.identity.ID(), Name: name, Addrs: advertised(c.host.Addrs(), cfg.Advertise), Zone: cfg.Zone, Weight: cfg.Weight},
		Listen:    cfg.GossipListen,
		Advertise: cfg.Advertise,
		Join:      cfg.Join,
		Secrets:   secrets,
		Providers: c.providers,
		Log:       log,
	})
	if err != nil {
		_ = c.host.Close()
		return nil, &SettingError{"gossip-listen", err}
	}
	close(c.begun)
	believed := p2p.Parents(parents)
	if parents == nil {
		believed = nil
	}
	c.client = p2p.NewClient(p2p.Config{
		Parents:   believed,
		Transport: c.host,
		Members:   membership{c},
		Signer:    signer{c.identity},
		Providers: c.providers,
		Random:    rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		Download:  p2p.NewLimiter(int64(cfg.DownloadLimit)),
		Upload:    p2p.NewLimiter(int64(cfg.UploadLimit)),
		Report:    report,
		Tracer:    t.tracer(),
		Links:     links,
		Traffic:   m.countPeers,
	})
	m.watchPeers(c.client.Peers().Status)
	if keep {
		c.claims = filepath.Join(dataDir, claimsName)
		c.restoreClaims()
	}
	return c, nil
}

// openIdentity opens the node's key, or makes one that lasts as long as the node, if somebody is to know it.
func (n *Node) openIdentity() (err error) {
	if !n.cfg.clustered() && !n.needsSite() {
		return nil
	}
	n.identity, err = n.identityIn(identityName)
	return err
}

// identityIn returns the key in a file of the data directory, or without one a key that lasts as long
// as the node.
func (n *Node) identityIn(name string) (i *libp2p.Identity, err error) {
	if n.store.Disk == nil {
		i, err = libp2p.NewIdentity()
	} else {
		i, err = libp2p.LoadIdentity(filepath.Join(n.cfg.DataDir, name), chunkstore.WriteDurably)
	}
	if err != nil {
		return nil, &SettingError{"data-dir", err}
	}
	return i, nil
}

// run is a member until ctx ends.
func (c *cluster) run(ctx context.Context, backend backend) error {
	c.host.Handle(p2p.NewServer(c.client, backend, c.log).Serve)
	g, ctx := errgroup.WithContext(ctx)
	c.log.Info("member of a cluster", "id", c.identity.ID(), "p2p", strings.Join(c.host.Addrs(), " "), "gossip", c.gossip.Addr())
	if c.cfg.InsecureCluster {
		c.log.Warn("the cluster has no secret: whoever can reach this node may join it, and is sent what clients' credentials it asks with")
	}
	g.Go(func() error { return c.gossip.Run(ctx) })
	g.Go(func() error { c.logMembers(ctx); return nil })
	g.Go(func() error { c.client.Run(ctx); return nil })
	g.Go(func() error { c.watchSecrets(ctx); return nil })
	g.Go(func() error { c.retell(ctx, backend.registry.Retell); return nil })
	return g.Wait()
}

// drain makes others take over what this node owns. When they leave too there may be
// nobody to hear of it, and clients' responses need the time.
func (c *cluster) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveFor)
	defer cancel()
	if err := c.gossip.Drain(ctx); err != nil {
		c.log.Warn("other members could not be told of the drain", "error", err)
	}
}

// close leaves the cluster. That others do not hear of it, who may be leaving too,
// is no fault of this node's.
func (c *cluster) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), leaveFor)
	defer cancel()
	if err := c.gossip.Leave(ctx); err != nil {
		c.log.Warn("other members could not be told of the leave", "error", err)
	}
	err := c.host.Close()
	if serr := c.saveClaims(); serr != nil { // as on a full disk; what may be lent is found out again
		c.log.Warn("claims were not kept for the next start", "error", serr)
	}
	return err
}

// watch tells others what becomes of blobs in the store. supplier returns the host
// that what is stored of a blob came from.
func (c *cluster) watch(d digest.Digest, e chunkstore.Event, supplier func(digest.Digest) string) {
	switch e {
	case chunkstore.Completed:
		c.client.Claims().Of(supplier(d)).Proven(d)
		c.gossip.Announce(d)
	case chunkstore.Refuted:
		c.client.Claims().Of(supplier(d)).Refuted(d)
		c.gossip.Withdraw(d)
	case chunkstore.Lost:
		c.gossip.Withdraw(d)
	}
}

// check returns a *SettingError for settings of the cluster that cannot be
// used together.
func (c ClusterConfig) check() error {
	switch {
	case !c.clustered() && len(c.Join) > 0:
		return &SettingError{"join", errors.New("a cluster has a secret: give --cluster-secret-file, or --insecure-cluster to go without")}
	case c.ClusterSecretFile != "" && c.InsecureCluster:
		return &SettingError{"insecure-cluster", errors.New("there is a secret, too")}
	case c.Weight < 0 || c.Weight > tracker.MaxWeight:
		return &SettingError{"weight", fmt.Errorf("it is not from 0 to %d", tracker.MaxWeight)}
	case c.Advertise != "" && (net.ParseIP(c.Advertise) == nil || net.ParseIP(c.Advertise).IsUnspecified()):
		return &SettingError{"advertise", errors.New("it is not the IP address of a machine")}
	case len(c.Zone) > maxZone:
		return &SettingError{"zone", fmt.Errorf("it is longer than %d bytes", maxZone)}
	}
	for _, j := range c.Join {
		if _, _, err := net.SplitHostPort(j); err != nil && strings.Contains(j, ":") && net.ParseIP(strings.Trim(j, "[]")) == nil {
			return &SettingError{"join", fmt.Errorf("%q is not HOST:PORT", j)}
		}
	}
	for name, limit := range map[string]Size{"upload-limit": c.UploadLimit, "download-limit": c.DownloadLimit, "upstream-limit": c.UpstreamLimit} {
		if limit != 0 && limit < minPassingRate {
			return &SettingError{name, fmt.Errorf("it is below %d bytes per second, with which nothing gets anywhere", minPassingRate)}
		}
	}
	return nil
}
