// Package node puts the parts of Granary together: the one place where the chunk
// store, the upstreams and the registry face meet. What it makes is a whole node
// that a program or a test can run.
package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/lend"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/bitswap"
	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/proxy/trace"
	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/tracker"
)

// Memory that a node spends on bytes. With what the runtime and the kernel add,
// a node that serves 64 cold blobs at once stays below 256 MiB.
const (
	memoryCache    = 16 << 20 // chunks that are kept
	readAhead      = 64 << 20 // chunks that readers hold, all together
	readerWindow   = 32 << 20 // and one reader at the most
	stripesAtFirst = 2        // that readers get from other members, all together
	stripesAtOnce  = 6        // and later on
	scrubEvery     = 7 * 24 * time.Hour
	scrubRate      = 16 << 20 // bytes per second
	maxHeader      = 64 << 10
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxQueue       = 8192 // requests that wait for their turn
	maxQueueing    = 10 * time.Second
)

// Node is one Granary node. It is made by [New] and lives in [Node.Run].
type Node struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	metrics *metrics
	faults  *faultLog

	upstreams *upstreams
	parents   *parent.Parents // nil for none
	ledger    *ledger
	identity  *libp2p.Identity // nil if nobody is to know it
	site      *siteHost        // nil without other sites that are met by libp2p
	network   atomic.Pointer[network]
	store     *chunkstore.Stack
	contents  *chunkstore.Disk // of files of layers, and what is derived from layers; nil when nothing is kept
	beside    contentDirs
	news      *contentNews
	catalog   *catalog.Catalog
	listeners []net.Listener // of the registry face
	admin     net.Listener   // nil without one
	adminTLS  bool
	guard     *adminGuard             // of the admin listener; nil without one
	gateway   net.Listener            // nil without one
	tokens    *tokens                 // that open more there; nil without a file
	chunks    http.Handler            // what answers there
	edge      *rebuild.Edge           // nil if no layers are made again
	cluster   *cluster                // nil for a node alone
	watching  atomic.Pointer[cluster] // the same, once it can be told of blobs
	bitswap   *bitswap.Node           // nil if no chunks are exchanged
	registry  *proxy.Registry
	handler   http.Handler
	tagRules  []proxy.TagRule
	tracing   tracing
	snapshots *snapshots         // nil if containerd's are not made here
	completed chan digest.Digest // blobs of which all is stored now
	lender    *lender            // and where it is asked; nil if nothing is lent
	lending   *lend.Server
	traffic   traffic
	reports   reports
	preheats  preheats
	images    images
	events    events
	closers   []func() error // in the order of opening
}

// New opens the data directory and the listeners of a node. A data directory
// that cannot be written to is no error: the node works without one and says so.
// One that another process holds is a [*chunkstore.LockedError].
func New(cfg Config, log *slog.Logger) (*Node, error) {
	log = slog.New(trace.Handler(log.Handler()))
	n := &Node{cfg: cfg, log: log, started: time.Now(), metrics: newMetrics(), completed: make(chan digest.Digest, 256)}
	n.reports.told, n.preheats.start = make(map[tracker.ID]toldReport), make(chan *preheating, maxPreheats)
	n.faults = &faultLog{log: log, metrics: n.metrics, last: make(map[string]time.Time)}
	if err := n.open(); err != nil {
		_ = n.close() // err is what matters
		return nil, err
	}
	face := proxy.Config{
		DefaultHost: n.cfg.DefaultUpstream,
		Upstream:    n.upstreams.repository,
		Deputies:    len(n.cfg.Parent) > 0,
		Store:       n.store,
		Keeps:       n.keepsOf(),
		Edge:        n.edge,
		Catalog:     n.catalog,
		Access: access.Config{
			PublicFor: cfg.PublicFor,
			GrantFor:  cfg.GrantFor,
			HoldFor:   cfg.MaxStale,
			Shared:    n.upstreams.credentials.shared,
			Public:    n.upstreams.public,
			Now:       n.cfg.Now,
		},
		TagRules: n.tagRules,
		Window:   readerWindow,
		Turns:    chunk.NewTurns(stripesAtFirst, stripesAtOnce, mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64()))),
		Budget:   chunk.NewBudget(readAhead),
		Report:   n.faults.report,
		Served:   n.served,
		Came:     n.came,
		Asked:    n.metrics.demand.countAsked,
	}
	if len(n.beside) > 0 {
		face.Beside = n.beside
	}
	derived := &lazy.Derived{Report: n.faults.report}
	if n.contents != nil {
		derived.Store, derived.Records = n.contents, n.catalog
		face.Contents = &lazy.Contents{Store: n.contents, Records: n.catalog, Report: n.faults.report}
	}
	face.Layers, face.Offers = lazy.NewLayers(derived), cfg.WAN != wanOff
	if n.cluster != nil {
		face.Peers = peers{n.cluster, n.store.Proven, cfg.ParentsOnly}
		if n.upstreams.ownRanges = cfg.UnprovenRanges == "upstream"; n.upstreams.ownRanges {
			face.Direct = n.upstreams.direct
		}
		face.Owns = n.cluster.client.Owns
		face.Ahead = n.cluster.client.Ahead
	}
	if len(cfg.BitswapPeer) > 0 {
		face.Swarm = swarm{n}
	}
	n.registry = proxy.NewRegistry(face)
	n.metrics.watchOffers(n.registry.Offers)
	n.lend(face.Contents)
	n.handler = n.metrics.answers(proxy.Limit(proxy.NewHandler(n.registry, n.upstreams.pseudonym, log, n.tracing.tracer()), proxy.Limits{
		Total: cfg.MaxRequests, PerClient: cfg.MaxRequestsPerClient, Queue: maxQueue, Wait: maxQueueing,
	}))
	for _, open := range []func() error{n.openGateway, n.openBitswap} {
		if err := open(); err != nil {
			_ = n.close() // err is what matters
			return nil, err
		}
	}
	n.openSchedule()
	return n, nil
}

func (n *Node) open() (err error) {
	if err := n.cfg.check(); err != nil {
		return err
	}
	n.openTracing()
	if n.upstreams, err = newUpstreams(n.cfg.DataConfig, p2p.NewLimiter(int64(n.cfg.UpstreamLimit)), n.metrics, n.faults); err != nil {
		return err
	}
	for _, s := range n.cfg.TagPolicy {
		rule, err := proxy.ParseTagRule(s)
		if err != nil {
			return &SettingError{"tag-policy", err}
		}
		n.tagRules = append(n.tagRules, rule)
	}
	if err := n.listen(); err != nil {
		return err
	}
	if err := n.openData(); err != nil {
		return err
	}
	if n.store.Disk != nil {
		n.metrics.watch(n.store.Disk.Usage, n.contents.Usage)
	}
	if err := n.openLedger(); err != nil {
		return err
	}
	if err := n.openIdentity(); err != nil {
		return err
	}
	if err := n.openSite(); err != nil {
		return err
	}
	if err := n.openParents(); err != nil {
		return err
	}
	if err := n.openEdge(); err != nil {
		return err
	}
	if err := n.openContentDirs(); err != nil {
		return err
	}
	if err := n.openSnapshots(); err != nil {
		return err
	}
	if !n.cfg.clustered() {
		return nil
	}
	n.cluster, err = newCluster(n.cfg.ClusterConfig, n.identity, n.cfg.DataDir, n.store.Disk != nil, n.metrics, n.tracing, n.links, n.parents, n.log, n.faults.report)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, n.cluster.close)
	n.watching.Store(n.cluster)
	return nil
}

// openLedger opens the ledger, and has registries counted in it.
func (n *Node) openLedger() (err error) {
	dir := ""
	if n.store.Disk != nil {
		dir = n.cfg.DataDir
	}
	if n.ledger, err = openLedger(dir); err != nil {
		n.log.Warn("what was asked for, moved and saved is counted anew", "error", err)
	}
	if n.cfg.Now != nil {
		n.ledger.now = n.cfg.Now
	}
	n.closers = append(n.closers, n.ledger.save)
	n.metrics.registry.MustRegister(n.ledger)
	n.upstreams.ledger.Store(n.ledger)
	return nil
}

// keepsOf returns what stays in the store of what is pulled; nil is for all.
func (n *Node) keepsOf() func(chunk.Ref) bool {
	switch {
	case n.cfg.Keep == keepNone:
		return func(chunk.Ref) bool { return false }
	case n.cfg.Keep == keepShared && n.cluster != nil:
		return n.cluster.client.Owns
	}
	return nil
}

// links returns the links before and after a chunk of a blob that has matched its digest here.
func (n *Node) links(ref chunk.Ref) (before, after chunk.Link, ok bool) {
	if n.store.Disk != nil {
		before, after, ok = n.store.Disk.Links(ref)
	}
	if !ok {
		before, after, ok = n.beside.Links(ref)
	}
	return before, after, ok
}

// lend makes the socket at which files of contents are lent. Without it they are sent.
func (n *Node) lend(contents *lazy.Contents) {
	if contents == nil || n.cfg.VerifyReads == "always" {
		return
	}
	find := func(q lend.Request) (toc.Entry, bool) {
		return n.registry.File(q.Mount, digest.Digest(q.Layer), q.Path)
	}
	n.lender = newLender(find, n.contents, contents, n.cfg.DataDir, n.faults.report)
	s, err := lend.Listen(lend.Path(n.cfg.DataDir), n.lender.open, func(err error) { n.log.Debug("files of contents", "error", err) })
	if err != nil {
		n.log.Warn("files of contents are not lent to mounts", "error", err)
		return
	}
	n.lending = s
	n.closers = append(n.closers, s.Close)
}

// watch is told what becomes of blobs in the store.
func (n *Node) watch(d digest.Digest, e chunkstore.Event) {
	if c := n.watching.Load(); c != nil {
		if e == chunkstore.Lost && n.news.has(d) {
			return // it is still in a content directory
		}
		c.watch(d, e, n.catalog.Supplier)
	}
	if t := n.network.Load(); t != nil {
		t.watch(d, e)
	}
	if e == chunkstore.Completed {
		select {
		case n.completed <- d:
		default: // so many at once; it is looked at when it is opened again
		}
	}
}

func (n *Node) listen() error {
	certificate, err := newCertificate(n.cfg.TLSCertFile, n.cfg.TLSKeyFile)
	if err != nil {
		return &SettingError{"tls-cert-file", err}
	}
	for _, address := range n.cfg.Listen {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return &SettingError{"listen", err}
		}
		n.closers = append(n.closers, ignoreClosed(l))
		n.listeners = append(n.listeners, certificate.listener(l))
	}
	if err := n.listenGateway(certificate); err != nil {
		return err
	}
	if n.cfg.Admin == "" {
		return nil
	}
	if n.guard, err = newAdminGuard(n.cfg.ListenConfig, n.log); err != nil {
		return err
	}
	if n.admin, err = net.Listen("tcp", n.cfg.Admin); err != nil {
		return &SettingError{"admin", err}
	}
	n.closers = append(n.closers, ignoreClosed(n.admin))
	if secure := n.guard.tls(certificate); secure != nil {
		n.admin, n.adminTLS = tls.NewListener(n.admin, secure), true
	}
	if !loopbackAddress(n.cfg.Admin) && !n.adminTLS {
		n.log.Warn("the admin listener can be reached from other machines without TLS: what is sent there can be read on the way", "admin", n.cfg.Admin)
	}
	return nil
}

// openData opens what is in the data directory, or does without.
func (n *Node) openData() error {
	memory := chunkstore.NewMemory(memoryCache)
	disk, err := n.openDisk()
	var locked *chunkstore.LockedError
	if errors.As(err, &locked) {
		return err
	}
	if err != nil {
		n.log.Error("working without a data directory: nothing is kept", "error", err)
		n.metrics.faults.WithLabelValues(faultKind(err)).Inc()
		n.store, n.catalog = chunkstore.NewStack(memory, nil), catalog.NewMemory()
		return nil
	}
	n.store = chunkstore.NewStack(memory, disk)
	return nil
}

func (n *Node) openDisk() (*chunkstore.Disk, error) {
	unlock, err := chunkstore.Lock(n.cfg.DataDir, n.holder())
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, func() error { unlock(); return nil })
	budget := int64(n.cfg.CacheSize)
	if budget == 0 {
		budget = defaultCacheSize(n.cfg.DataDir)
	}
	contents, err := chunkstore.Open(filepath.Join(n.cfg.DataDir, "contents"), chunkstore.Config{
		Budget: budget / 2, VerifyAlways: n.cfg.VerifyReads == "always", Report: n.faults.report,
	})
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, contents.Close)
	if n.catalog, err = n.openCatalog(); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, n.catalog.Close)
	disk, err := chunkstore.Open(n.cfg.DataDir, chunkstore.Config{
		Budget:       budget,
		Below:        contents,
		VerifyAlways: n.cfg.VerifyReads == "always",
		Held:         graph.Held,
		Last:         n.catalog.Imported,
		Watch:        n.watch,
		Report:       n.faults.report,
	})
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, disk.Close)
	n.contents = contents
	return disk, nil
}

// openCatalog opens the catalog. A damaged one is set aside: the upstreams know
// all that is in it.
func (n *Node) openCatalog() (*catalog.Catalog, error) {
	path := filepath.Join(n.cfg.DataDir, "catalog.db")
	c, err := catalog.Open(path, n.faults.report)
	if err == nil || errors.Is(err, os.ErrPermission) {
		return c, err
	}
	n.log.Error("catalog was set aside; starting a new one", "error", err)
	if err := os.Rename(path, path+".damaged"); err != nil {
		return nil, err
	}
	return catalog.Open(path, n.faults.report)
}

// holder is what the lock says of this process: commands that find it go through
// the admin listener.
func (n *Node) holder() string {
	if n.admin == nil {
		return fmt.Sprintf("pid %d", os.Getpid())
	}
	return fmt.Sprintf("pid %d, admin %s", os.Getpid(), n.AdminURL())
}

// URLs returns where the registry face is reached.
func (n *Node) URLs() []string {
	var urls []string
	for _, l := range n.listeners {
		urls = append(urls, n.scheme()+l.Addr().String())
	}
	return urls
}

// scheme is how what is not the admin listener is reached.
func (n *Node) scheme() string {
	if n.cfg.TLSCertFile != "" {
		return "https://"
	}
	return "http://"
}

// AdminURL returns where the admin listener is reached from this machine, or "".
func (n *Node) AdminURL() string {
	if n.admin == nil {
		return ""
	}
	address := n.admin.Addr().String()
	if host, port, err := net.SplitHostPort(address); err == nil && net.ParseIP(host).IsUnspecified() {
		address = net.JoinHostPort("127.0.0.1", port) // a name that is nobody's is answered to nobody
	}
	if n.adminTLS {
		return "https://" + address
	}
	return "http://" + address
}
