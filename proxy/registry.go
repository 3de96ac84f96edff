package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/delta"
	"github.com/granary-oci/granary/proxy/flight"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// ErrRefused says that this node does not read from the registry that a request
// names.
var ErrRefused = errors.New("this node does not serve that registry")

// askFor bounds a question to an upstream.
const askFor = 30 * time.Second

// Upstream reads one repository of the registry that owns it, in somebody's
// name, or of what stands in for that. A registry's answer other than success is an
// *upstream.StatusError; for what else may go wrong upstream.Unreachable tells whether
// it was reached.
//
// Whatever is answered has the name of where it comes from (chunk.SetOrigin). Only an
// answer from upstream.Origin says who may read the repository: it is a registry's,
// which knows. Any other speaks for what was asked alone.
type Upstream interface {
	// Resolve returns the descriptor of a manifest, by tag or digest.
	Resolve(ctx context.Context, reference string) (upstream.Resolved, error)
	// Manifest returns a manifest's exact bytes too, checked against its digest.
	Manifest(ctx context.Context, reference string) (upstream.Manifest, error)
	// Stat returns the size of a blob in bytes.
	Stat(ctx context.Context, d digest.Digest) (int64, error)
	// Blob returns a source of the chunks of any blob, checked as far as each can be
	// alone (chunk.Verify).
	Blob() chunk.Source
	// Get asks for any other path below the repository. The caller closes the body.
	Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error)
}

// doubter is an upstream that looks again at what it has of a blob, before it gives any of
// it out, after the blob has not matched its digest.
type doubter interface{ Doubt(d digest.Digest) }

// settler is an upstream that is told when a blob has matched its digest.
type settler interface{ Settled(d digest.Digest) }

// Store is the near side of the node.
type Store interface {
	chunk.Store
	chunk.Proofs
	Stat(d digest.Digest) (chunkstore.Info, error)
	// Sync records everything that was written, as happens now and then anyway.
	Sync() error
	// Has reports whether a chunk is there to be read.
	Has(ref chunk.Ref) bool
	// Drop forgets all that is stored of a blob that is not proven.
	Drop(d digest.Digest)
	Retain(d digest.Digest, total int64) (release func())
	Lend(d digest.Digest, off, n int64) (*os.File, bool)
	// Pass gives those a chunk who read the same at about the same time. It is not kept.
	Pass(ctx context.Context, ref chunk.Ref, p []byte) error
	// Find returns a chunk of any blob by its own digest.
	Find(ctx context.Context, d digest.Digest) ([]byte, chunk.Ref, error)
	// Place returns where a chunk of that digest is stored, without reading it.
	Place(d digest.Digest) (chunk.Ref, bool)
	// Wholes returns the blobs of some size that have matched their digest, see
	// chunkstore.Disk. Digests and Match are of the chunks of such.
	Wholes(least, most int64) []chunkstore.Whole
	Digests(ctx context.Context, d digest.Digest, total int64, first, n int) (chunk.Digests, error)
	Match(ctx context.Context, ref chunk.Ref, want digest.Digest) ([]byte, error)
	// Fits reports whether nothing is known by which p cannot be a chunk of its blob.
	Fits(ref chunk.Ref, p []byte) bool
}

var _ Store = (*chunkstore.Stack)(nil)

// Config holds what a [Registry] is made of. All fields without a stated zero
// are required.
type Config struct {
	// DefaultHost is the registry of requests that name none.
	DefaultHost string
	// Upstream returns a repository as it is read with a value of Authorization,
	// "" being the node itself. [ErrRefused] is for registries that are not read.
	Upstream func(repo ref.Repository, authorization string) (Upstream, error)
	// Deputies says that what Upstream returns has some.
	Deputies bool
	Store    Store
	Catalog  *catalog.Catalog
	// Keeps says whether a chunk of a blob that somebody pulls stays in the store. nil is for
	// all. Manifests stay, and what is read of files, and what is imported.
	Keeps func(chunk.Ref) bool
	// Beside has blobs that others keep on this machine. nil is for none.
	Beside Beside
	// Direct is Upstream without what only stands before a registry. It makes parts of a blob that has
	// not matched its digest rest on what this node has fetched there itself, not on what other
	// members say, or deputies. nil is for what anybody says.
	Direct func(repo ref.Repository, authorization string) (Upstream, error)
	// Peers are the other members of the cluster. nil is for a node without one.
	Peers Peers
	// Swarm are asked for chunks of what is brought in before anybody reads it. nil is for none.
	Swarm Swarm
	// Edge makes layers again of what older ones have, and parents of the rest. nil is for fetching them.
	Edge *rebuild.Edge
	// Owns says which chunks of that this node gets for its cluster. nil is for all.
	Owns func(chunk.Ref) bool
	// Access says how long grants are good for. Its HoldFor bounds how long after
	// the upstream's last word a tag is served, too, and tags are dated by its clock.
	Access access.Config
	// TagRules say for which tags the upstream is not asked each time. The first
	// that means a tag holds.
	TagRules []TagRule
	// Window is how many bytes a reader of a blob may hold, see chunk.BlobConfig.
	Window int64
	// Ahead says how many bytes from its position on a reader has brought into the store, of what comes
	// from other members. nil is for the window.
	Ahead func() int64
	// Turns are those of stripes that come from other members. nil bounds nothing.
	Turns *chunk.Turns
	// Budget bounds the memory of all readers together. nil does not.
	Budget *chunk.Budget
	// Report is told of faults that were worked around. nil ignores them.
	Report func(error)
	// Layers opens layers, and Contents keeps what is read of their files; nil keeps
	// nothing.
	Layers   *lazy.Layers
	Contents *lazy.Contents
	// Offers says that other sites get layers by what changed in them, as [Registry.MakeOffers] makes
	// ready.
	Offers bool
	// Served is told of bytes of an image that left the node: to whom ("http" or "fuse"), and which
	// source they came from. nil ignores them.
	Served func(image Image, face, source string, n int64)
	// Came is told of bytes of an image's blobs that came to the node: from "peer", which is another member, or
	// from a parent, layout or upstream. nil ignores them.
	Came func(image Image, source string, n int64)
	// Asked is told of each request of a client for a manifest or a blob. nil ignores them.
	Asked func(host, method string, kind ref.Kind)
}

// Registry answers what a registry is asked, for every repository of every
// upstream. It is safe for concurrent use.
type Registry struct {
	cfg       Config
	ledger    *access.Ledger
	flights   flights      // of chunks
	supplying sync.RWMutex // written while a blob changes its supplier
	questions flight.Group // to upstreams
	recent    recent       // repositories that other members know of
	forgotten forgotten    // tags that were invalidated
	open      openNow      // repositories that a registry itself serves to everybody
	lists     lists
	pieces    pieceCache
	deltas    delta.Blobs
	rebuilds  flight.Group // of layers
	tars      tars
	turns     turns
	inflating inflating
	told      told
	mounts    mounts
	reads     readings
	profiling sync.Mutex          // held while a profile changes
	rangeless hosts               // that have sent the whole for a part
	parsing   *semaphore.Weighted // of pages of lists, and manifests
	gathering *semaphore.Weighted // bytes of lists
	digesting *semaphore.Weighted // of chunks, for other members
	hub       *rebuild.Hub        // nil without offers
}

// NewRegistry returns a registry made of cfg.
func NewRegistry(cfg Config) *Registry {
	if cfg.Report == nil {
		cfg.Report = func(error) {}
	}
	if cfg.Layers == nil {
		cfg.Layers = lazy.NewLayers(&lazy.Derived{Report: cfg.Report})
	}
	if cfg.Beside == nil {
		cfg.Beside = nobody{}
	}
	if cfg.Served == nil {
		cfg.Served = func(Image, string, string, int64) {}
	}
	if cfg.Came == nil {
		cfg.Came = func(Image, string, int64) {}
	}
	if cfg.Asked == nil {
		cfg.Asked = func(string, string, ref.Kind) {}
	}
	if cfg.Access.Report == nil {
		cfg.Access.Report = cfg.Report
	}
	r := &Registry{
		cfg: cfg, ledger: access.New(cfg.Access, cfg.Catalog.Access()),
		parsing: semaphore.NewWeighted(parseAtOnce), gathering: semaphore.NewWeighted(allListBytes), digesting: semaphore.NewWeighted(digestAtOnce),
	}
	if cfg.Offers {
		r.hub = r.newHub()
	}
	return r
}

// Open returns a repository as caller reads it. It asks nobody.
func (r *Registry) Open(repo ref.Repository, caller access.Caller) *Repository {
	return &Repository{Repository: repo, registry: r, caller: caller}
}

// Invalidate forgets what a tag was resolved to, or with tag "" each tag of the
// repository, so that the upstream is asked next time. It returns how many were
// known.
func (r *Registry) Invalidate(repo ref.Repository, tag string) (int, error) {
	r.forgotten.add(repo, tag, r.ledger.Now())
	r.lists.forget(repo.String())
	return r.cfg.Catalog.ForgetTags(repo.String(), tag)
}

// Refetch reads a blob from the start to the end, so that what is missing of it
// is fetched again from an upstream that serves it to the node.
func (r *Registry) Refetch(ctx context.Context, d digest.Digest) error {
	err := fmt.Errorf("blob %s: no repository is known to have it", d)
	for _, home := range r.cfg.Catalog.Homes(d) {
		host, name, _ := strings.Cut(home, "/")
		if !r.mayShare(host, d) {
			continue
		}
		var b *Blob
		b, err = r.Open(ref.Repository{Host: host, Name: name}, access.Caller{}).Blob(ctx, d)
		if err != nil {
			continue
		}
		err = r.restore(ctx, b)
		b.Release()
		if err == nil {
			return nil
		}
	}
	return err
}

// restore reads a blob and puts each chunk: one that came from memory may be
// missing on disk.
func (r *Registry) restore(ctx context.Context, b *Blob) error {
	m, err := chunk.Grid(b.Digest(), b.Size())
	if err != nil {
		return err
	}
	rd := b.Open(ctx)
	defer rd.Close()
	for i := range m.Len() {
		p, _, err := rd.Next()
		if err == io.EOF {
			return nil // an empty blob
		}
		if err != nil {
			return err
		}
		if err := r.cfg.Store.Put(ctx, m.At(i), p); err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) report(err error) {
	if err != nil {
		r.cfg.Report(err)
	}
}
