package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/lend"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/gossip"
)

// Status is what a node says of itself, as JSON at /api/v1/status.
type Status struct {
	At        time.Time `json:"at"` // what follows was looked up then
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	Listen    []string  `json:"listen"` // URLs of the registry face
	Admin     string    `json:"admin"`
	DataDir   string    `json:"dataDir"`
	Degraded  string    `json:"degraded,omitempty"` // why nothing is kept, if so
	Files     string    `json:"files,omitempty"`    // Unix socket at which files of contents are lent
	Upstreams []string  `json:"upstreams"`          // registries that have been asked

	Store chunkstore.Usage `json:"store"`
	// Contents are those of files, inflated, and what was derived from layers. They
	// share the store's budget, and go first.
	Contents chunkstore.Usage `json:"contents"`
	// Served counts bytes that left the node by where they came from.
	Served map[string]int64 `json:"served"`
	// Received counts bytes that came from upstream registries, and from web servers.
	Received int64 `json:"received"`
	// Demand is what was asked of the node, and what it asked of registries; Savings is what
	// these were spared by its cluster, as far as other members have told lately.
	Demand  Demand  `json:"demand"`
	Savings Savings `json:"savings"`
	// Traffic is what passed through the node in the last second.
	Traffic Sample `json:"traffic"`
	// UnderWay are the images that clients pull now.
	UnderWay []proxy.ImageUnderWay `json:"underWay,omitempty"`
	// Preheats are those that run, and that were over last.
	Preheats []PreheatStatus `json:"preheats,omitempty"`
	// Mounts are the images that are mounted through the node.
	Mounts []proxy.MountStatus `json:"mounts,omitempty"`
	// SiteID is what parents know the node by, if it meets other sites by libp2p: their --child.
	SiteID string `json:"siteID,omitempty"`
	// Site are multiaddrs at which other sites reach the node, each to be given as --parent.
	Site []string `json:"site,omitempty"`
	// Links are what crossed each link to the outside, and what it was spared.
	Links []Link `json:"links,omitempty"`
	// Images are the accounts of those that were used last: 32 at most, /api/v1/images has more.
	Images []ImageAccount `json:"images,omitempty"`
	// Offers are what is made of layers for other sites that have older ones, since the start.
	Offers rebuild.Counts `json:"offers"`
	// Parents are the sites that are asked before registries, in order of preference.
	Parents []parent.Status `json:"parents,omitempty"`
	// WAN is what was made again of older layers and not fetched as a whole, nil if nothing is.
	WAN *rebuild.Ledger `json:"wan,omitempty"`
	// Cluster is nil for a node alone.
	Cluster *ClusterStatus `json:"cluster,omitempty"`
}

// ClusterStatus is what a member says of its cluster.
type ClusterStatus struct {
	ID       tracker.ID       `json:"id"`
	Zone     string           `json:"zone,omitempty"`
	P2P      []string         `json:"p2p"`    // multiaddrs
	Gossip   string           `json:"gossip"` // HOST:PORT
	Members  []p2p.PeerStatus `json:"members"`
	Received int64            `json:"received"` // bytes from other members
	Sent     int64            `json:"sent"`     // and to them
	// Flows are what goes from member to member now: to and from this one, and between others
	// as they have told, which they are asked for while somebody looks.
	Flows   []Flow         `json:"flows"`
	Trouble gossip.Trouble `json:"trouble"`
}

func (n *Node) clusterStatus() *ClusterStatus {
	c := n.cluster
	if c == nil {
		return nil
	}
	return &ClusterStatus{
		ID: c.identity.ID(), Zone: c.cfg.Zone, P2P: c.host.Addrs(), Gossip: c.gossip.Addr(),
		Trouble: c.gossip.Trouble(), Members: c.client.Peers().Status(), Received: n.metrics.peersIn.Load(), Sent: n.metrics.peersOut.Load(),
		Flows: n.flows(),
	}
}

// Status returns what the node says of itself.
func (n *Node) Status() Status {
	s := Status{
		At:        time.Now(),
		Version:   Version,
		Started:   n.started,
		Listen:    n.URLs(),
		Admin:     n.AdminURL(),
		DataDir:   n.cfg.DataDir,
		Upstreams: n.upstreams.names(),
		Served:    make(map[string]int64),
		Received:  n.metrics.upstream.Load(),
		Demand:    n.metrics.demandSoFar(),
		Savings:   n.savings(),
		UnderWay:  n.registry.UnderWay(context.Background()), // from memory and the store's index
		Mounts:    n.registry.Mounts(),
		Offers:    n.registry.Offers(),
		Cluster:   n.clusterStatus(),
	}
	s.Links, s.Images = n.ledger.sums(), n.ledger.imageSums(maxShownAccounts)
	s.Site, s.SiteID = n.SiteAddrs(), n.siteID()
	if n.parents != nil {
		s.Parents = n.parents.Status()
	}
	s.WAN = n.wan()
	s.Traffic, _ = n.traffic.latest()
	s.Preheats = n.preheated(maxShownPreheats)
	if n.store.Disk == nil {
		s.Degraded = "the data directory cannot be used; nothing is kept"
	} else {
		s.Store, s.Contents = n.store.Disk.Usage(), n.contents.Usage()
	}
	if path, err := filepath.Abs(lend.Path(n.cfg.DataDir)); err == nil && n.lending != nil {
		s.Files = path
	}
	for i, source := range sources {
		s.Served[source] = n.metrics.bySource[i].Load()
	}
	return s
}

// FsckLine is one line of the answer of /api/v1/fsck: a chunk that was found to
// be wrong or unreadable, or, on the last line, the report.
type FsckLine struct {
	Found  string      `json:"found,omitempty"`
	Report *FsckReport `json:"report,omitempty"`
	Error  string      `json:"error,omitempty"`
}

// FsckReport sums up a check of the store.
type FsckReport struct {
	chunkstore.FsckReport
	Damaged  int `json:"damaged"`  // blobs that had wrong chunks
	Repaired int `json:"repaired"` // of these, those that were fetched again
}

// Fsck checks the store, and with repair fetches what was dropped again from
// upstreams that serve it to the node. found is told of each fault.
func (n *Node) Fsck(ctx context.Context, repair bool, found func(error)) (FsckReport, error) {
	if n.store.Disk == nil {
		return FsckReport{}, errors.New(n.Status().Degraded)
	}
	damaged := make(map[digest.Digest]bool)
	sum, err := n.store.Disk.Fsck(ctx, nil, func(err error) {
		n.faults.report(err)
		found(err)
		var corrupt *chunk.CorruptError
		if errors.As(err, &corrupt) {
			damaged[corrupt.Ref.Blob] = true
		}
	})
	if err == nil {
		err = n.fsckContents(ctx, &sum, found)
	}
	report := FsckReport{FsckReport: sum, Damaged: len(damaged)}
	for d := range damaged {
		if !repair || err != nil {
			break
		}
		if rerr := n.registry.Refetch(ctx, d); rerr != nil {
			found(fmt.Errorf("repair: %w", rerr))
			continue
		}
		report.Repaired++
	}
	return report, err
}

// fsckContents checks the contents of files. What was wrong is inflated again when it
// is read.
func (n *Node) fsckContents(ctx context.Context, sum *chunkstore.FsckReport, found func(error)) error {
	more, err := n.contents.Fsck(ctx, nil, func(err error) {
		n.faults.report(err)
		found(err)
	})
	sum.Blobs += more.Blobs
	sum.Chunks += more.Chunks
	sum.Bytes += more.Bytes
	sum.Wrong += more.Wrong
	sum.Failed += more.Failed
	return err
}

// GC evicts what has not been read for longest until the store has at most keep
// bytes, and returns how many it evicted. A negative keep is what eviction under
// the budget leaves.
func (n *Node) GC(keep int64) (int64, error) {
	if n.store.Disk == nil {
		return 0, errors.New(n.Status().Degraded)
	}
	return n.store.Disk.GC(keep)
}

// Invalidated is what came of [Node.Invalidate].
type Invalidated struct {
	Tags    int      `json:"tags"`             // that this node knew
	Members int      `json:"members"`          // others that have forgotten them too
	Failed  []string `json:"failed,omitempty"` // others that could not be told, and why
}

// Invalidate makes the cluster forget what a tag was resolved to, or for a
// repository's name alone each of its tags.
func (n *Node) Invalidate(ctx context.Context, name string) (done Invalidated, err error) {
	r, err := ref.Parse(name, n.cfg.DefaultUpstream)
	if err != nil {
		return done, err
	}
	if r.Digest != "" {
		return done, fmt.Errorf("%s: a digest never changes its meaning; name a tag or a repository", name)
	}
	if r.Tag == "latest" && !strings.HasSuffix(name, ":latest") {
		r.Tag = ""
	}
	if done.Tags, err = n.registry.Invalidate(r.Repository, r.Tag); err != nil || n.cluster == nil {
		return done, err
	}
	ctx, cancel := context.WithTimeout(ctx, forgetFor)
	defer cancel()
	told, err := n.cluster.client.Forget(ctx, wire.Forget{Host: r.Host, Name: r.Name, Tag: r.Tag})
	done.Members = told
	// Meanwhile a member that had not been told may have answered this one.
	if _, ferr := n.registry.Invalidate(r.Repository, r.Tag); ferr != nil {
		return done, ferr
	}
	done.Failed = lines(err)
	return done, nil
}

// lines returns the errors that were joined to err, a line for each.
func lines(err error) (all []string) {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, err := range joined.Unwrap() {
			all = append(all, strings.ReplaceAll(err.Error(), "\n", " "))
		}
	}
	return all
}

// forgetFor is how long members may take to forget.
const forgetFor = 5 * time.Second

// serveFsck checks the store and answers line by line, as it finds things.
func (n *Node) serveFsck(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	report, err := n.Fsck(r.Context(), r.FormValue("repair") == "true", func(err error) {
		_ = lines.Encode(FsckLine{Found: err.Error()})
		_ = http.NewResponseController(w).Flush()
	})
	last := FsckLine{Report: &report}
	if err != nil {
		last.Error = err.Error()
	}
	_ = lines.Encode(last)
}
