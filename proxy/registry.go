package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// PublicFor is how long a repository counts as public after its upstream has
// served it to an anonymous client.
const PublicFor = 10 * time.Minute

// askFor bounds a question to an upstream that several clients may wait for: it
// goes on when one of them leaves.
const askFor = 30 * time.Second

// Upstream reads one repository of the registry that owns it. An answer other
// than success is an *upstream.StatusError; for what else may go wrong
// upstream.Unreachable tells whether the registry was reached.
type Upstream interface {
	// Resolve returns the descriptor of a manifest, by tag or digest.
	Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error)
	// Manifest returns a manifest's exact bytes too, checked against its digest.
	Manifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error)
	// Stat returns the size of a blob in bytes.
	Stat(ctx context.Context, d digest.Digest) (int64, error)
	// Blob returns a source of the chunks of any blob, which it need not check.
	Blob() chunk.Source
	// Get asks for any other path below the repository. The caller closes the body.
	Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error)
}

// Store is the near side of the node.
type Store interface {
	chunk.Store
	chunk.Proofs
	Retain(d digest.Digest, total int64) (release func())
	Lend(d digest.Digest, off, n int64) (*os.File, bool)
}

var _ Store = (*chunkstore.Stack)(nil)

// Config holds what a [Registry] is made of. All fields without a stated zero
// are required.
type Config struct {
	// DefaultHost is the registry of requests that name none.
	DefaultHost string
	// Upstream returns the upstream of a repository.
	Upstream func(ref.Repository) (Upstream, error)
	Store    Store
	Catalog  *catalog.Catalog
	// Window is how many bytes a reader of a blob may hold, see chunk.BlobConfig.
	Window int64
	// Budget bounds the memory of all readers together. nil does not.
	Budget *chunk.Budget
	// Report is told of faults that were worked around. nil ignores them.
	Report func(error)
	// Served is told of bytes that left the node, and of the source they came
	// from. nil ignores them.
	Served func(source string, n int64)
}

// Registry answers what a registry is asked, for every repository of every
// upstream. It is safe for concurrent use.
type Registry struct {
	cfg       Config
	flight    chunk.Flight       // of chunks
	questions singleflight.Group // to upstreams
}

// NewRegistry returns a registry made of cfg.
func NewRegistry(cfg Config) *Registry {
	if cfg.Report == nil {
		cfg.Report = func(error) {}
	}
	if cfg.Served == nil {
		cfg.Served = func(string, int64) {}
	}
	return &Registry{cfg: cfg}
}

// Resolution is what a tag or digest means, now or when the upstream could last
// be asked.
type Resolution struct {
	ocispec.Descriptor
	// Stale is the time of the upstream's last word when it cannot be reached
	// now, else zero.
	Stale time.Time
}

// Resolve returns the descriptor of a manifest. A tag is looked up at the
// upstream each time; while that is unreachable its last resolution holds.
func (r *Registry) Resolve(ctx context.Context, repo ref.Repository, tag string, d digest.Digest) (Resolution, error) {
	if d != "" {
		desc, err := r.resolveDigest(ctx, repo, d)
		return Resolution{Descriptor: desc}, err
	}
	v, err := r.ask(ctx, "resolve "+repo.String()+":"+tag, func(ctx context.Context) (any, error) {
		up, err := r.cfg.Upstream(repo)
		if err != nil {
			return nil, err
		}
		desc, err := up.Resolve(ctx, tag)
		if err != nil {
			return r.lastResolution(repo, tag, err)
		}
		r.setPublic(repo, true)
		r.setTag(repo, tag, desc)
		return Resolution{Descriptor: desc}, nil
	})
	if err != nil {
		return Resolution{}, fmt.Errorf("%s:%s: %w", repo, tag, r.heed(repo, err))
	}
	return v.(Resolution), nil
}

// lastResolution stands in for an upstream that gave err.
func (r *Registry) lastResolution(repo ref.Repository, tag string, err error) (Resolution, error) {
	t, known := r.cfg.Catalog.Tag(repo.String(), tag)
	v, _ := r.cfg.Catalog.Visibility(repo.String())
	if !known || !v.Public || !upstream.Unreachable(err) {
		return Resolution{}, err
	}
	desc := ocispec.Descriptor{Digest: t.Digest, MediaType: t.MediaType, Size: t.Size}
	return Resolution{Descriptor: desc, Stale: t.Checked}, nil
}

func (r *Registry) resolveDigest(ctx context.Context, repo ref.Repository, d digest.Digest) (ocispec.Descriptor, error) {
	if m, ok := r.cfg.Catalog.Member(repo.String(), d); ok && m.Manifest {
		desc := ocispec.Descriptor{Digest: d, MediaType: m.MediaType, Size: m.Size}
		err := r.public(ctx, repo, func(ctx context.Context, up Upstream) error {
			_, err := up.Resolve(ctx, string(d))
			return err
		})
		return desc, err
	}
	desc, _, err := r.fetchManifest(ctx, repo, d)
	return desc, err
}

// Manifest returns the exact bytes of a manifest that [Registry.Resolve] has
// returned for repo.
func (r *Registry) Manifest(ctx context.Context, repo ref.Repository, desc ocispec.Descriptor) (ocispec.Descriptor, []byte, error) {
	m, ok := r.cfg.Catalog.Member(repo.String(), desc.Digest)
	if ok && m.Manifest {
		if p, err := r.stored(ctx, desc.Digest, m.Size); err == nil {
			return ocispec.Descriptor{Digest: desc.Digest, MediaType: m.MediaType, Size: m.Size}, p, nil
		}
	}
	return r.fetchManifest(ctx, repo, desc.Digest)
}

// stored reads all of a manifest from the store.
func (r *Registry) stored(ctx context.Context, d digest.Digest, size int64) ([]byte, error) {
	if size > upstream.MaxManifestSize {
		return nil, chunk.ErrNotFound
	}
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, err
	}
	p := make([]byte, 0, size)
	for i := range m.Len() {
		c, err := r.cfg.Store.Get(ctx, m.At(i))
		if err != nil {
			if !errors.Is(err, chunk.ErrNotFound) {
				r.cfg.Report(err)
			}
			return nil, err
		}
		p = append(p, c...)
	}
	if m.Len() > 1 && d.Algorithm().FromBytes(p) != d {
		return nil, chunk.ErrNotFound
	}
	return p, nil
}

type manifest struct {
	desc  ocispec.Descriptor
	bytes []byte
}

// fetchManifest gets a manifest from the upstream and keeps it, and what it says
// of the repository.
func (r *Registry) fetchManifest(ctx context.Context, repo ref.Repository, d digest.Digest) (ocispec.Descriptor, []byte, error) {
	v, err := r.ask(ctx, "manifest "+repo.String()+"@"+string(d), func(ctx context.Context) (any, error) {
		up, err := r.cfg.Upstream(repo)
		if err != nil {
			return nil, err
		}
		desc, p, err := up.Manifest(ctx, string(d))
		if err != nil {
			return nil, err
		}
		named, err := descriptors(p)
		if err != nil {
			return nil, err
		}
		r.keep(ctx, desc, p)
		r.learn(repo, desc, named)
		return manifest{desc, p}, nil
	})
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%s@%s: %w", repo, d, r.heed(repo, err))
	}
	return v.(manifest).desc, v.(manifest).bytes, nil
}

// keep puts a manifest, which has been checked, into the store.
func (r *Registry) keep(ctx context.Context, desc ocispec.Descriptor, p []byte) {
	m, err := chunk.Grid(desc.Digest, int64(len(p)))
	if err != nil {
		r.cfg.Report(err)
		return
	}
	defer r.cfg.Store.Retain(desc.Digest, m.Size())()
	for i := range m.Len() {
		c := m.At(i)
		r.report(r.cfg.Store.Put(ctx, c, p[c.Offset:c.Offset+c.Size]))
	}
}

// Blob returns a blob of repo, to be read under ctx, and a function to call when
// it has been read.
func (r *Registry) Blob(ctx context.Context, repo ref.Repository, d digest.Digest) (b *chunk.Blob, release func(), err error) {
	size, err := r.blobSize(ctx, repo, d)
	if err != nil {
		return nil, nil, fmt.Errorf("%s@%s: %w", repo, d, err)
	}
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", repo, err)
	}
	up, err := r.cfg.Upstream(repo)
	if err != nil {
		return nil, nil, err
	}
	far := chunk.Named("upstream", chunk.Verify("upstream", up.Blob()))
	src := chunk.Cache(r.cfg.Store, far, &r.flight, r.cfg.Report)
	b = chunk.NewBlob(m, src, chunk.BlobConfig{Window: r.cfg.Window, Budget: r.cfg.Budget, Proofs: r.cfg.Store})
	return b, r.cfg.Store.Retain(d, size), nil
}

// blobSize decides whether d may be read under repo, and returns its size.
func (r *Registry) blobSize(ctx context.Context, repo ref.Repository, d digest.Digest) (int64, error) {
	if m, ok := r.cfg.Catalog.Member(repo.String(), d); ok {
		return m.Size, r.public(ctx, repo, func(ctx context.Context, up Upstream) error {
			_, err := up.Stat(ctx, d)
			return err
		})
	}
	v, err := r.ask(ctx, "blob "+repo.String()+"@"+string(d), func(ctx context.Context) (any, error) {
		up, err := r.cfg.Upstream(repo)
		if err != nil {
			return nil, err
		}
		size, err := up.Stat(ctx, d)
		if err != nil {
			return nil, err
		}
		r.learn(repo, ocispec.Descriptor{}, map[digest.Digest]catalog.Member{d: {Size: size}})
		return size, nil
	})
	if err != nil {
		return 0, r.heed(repo, err)
	}
	return v.(int64), nil
}

// public returns nil if repo may be read by anyone, else the upstream's refusal.
// probe asks the upstream for the very thing that is wanted, once in PublicFor.
// While the upstream cannot be reached, its last answer holds.
func (r *Registry) public(ctx context.Context, repo ref.Repository, probe func(context.Context, Upstream) error) error {
	v, _ := r.cfg.Catalog.Visibility(repo.String())
	if v.Public && time.Since(v.Checked).Abs() < PublicFor {
		return nil
	}
	_, err := r.ask(ctx, "public "+repo.String(), func(ctx context.Context) (any, error) {
		up, err := r.cfg.Upstream(repo)
		if err == nil {
			err = probe(ctx, up)
		}
		if err == nil {
			r.setPublic(repo, true)
		}
		return nil, err
	})
	if err != nil && v.Public && upstream.Unreachable(err) {
		return nil
	}
	return r.heed(repo, err)
}

// learn records that the upstream served desc, a manifest, to an anonymous
// client, and what else belongs to the repository for that. desc may be empty.
func (r *Registry) learn(repo ref.Repository, desc ocispec.Descriptor, named map[digest.Digest]catalog.Member) {
	r.setPublic(repo, true)
	if named == nil {
		named = make(map[digest.Digest]catalog.Member)
	}
	if desc.Digest != "" {
		named[desc.Digest] = catalog.Member{MediaType: desc.MediaType, Size: desc.Size, Manifest: true}
	}
	r.report(r.cfg.Catalog.AddMembers(repo.String(), named))
}

// heed takes note of a refusal: a repository that the upstream no longer serves
// to everybody is not public any more.
func (r *Registry) heed(repo ref.Repository, err error) error {
	var status *upstream.StatusError
	if errors.As(err, &status) && (status.Code == http.StatusUnauthorized || status.Code == http.StatusForbidden) {
		r.setPublic(repo, false)
	}
	return err
}

// setPublic records who may read repo. An answer like the last one is recorded
// only when that one has grown old, to spare the disk.
func (r *Registry) setPublic(repo ref.Repository, public bool) {
	v, ok := r.cfg.Catalog.Visibility(repo.String())
	if ok && v.Public == public && time.Since(v.Checked).Abs() < PublicFor/4 || !ok && !public {
		return
	}
	r.report(r.cfg.Catalog.SetVisibility(repo.String(), catalog.Visibility{Public: public, Checked: time.Now()}))
}

// setTag records what tag was resolved to, under the same rule.
func (r *Registry) setTag(repo ref.Repository, tag string, desc ocispec.Descriptor) {
	t, ok := r.cfg.Catalog.Tag(repo.String(), tag)
	if ok && t.Digest == desc.Digest && time.Since(t.Checked).Abs() < PublicFor/4 {
		return
	}
	r.report(r.cfg.Catalog.SetTag(repo.String(), tag, catalog.Tag{
		Digest: desc.Digest, MediaType: desc.MediaType, Size: desc.Size, Checked: time.Now(),
	}))
}

// ask makes callers with the same question share one answer. The question
// belongs to nobody and goes on, for askFor at most, when a caller leaves.
func (r *Registry) ask(ctx context.Context, question string, answer func(context.Context) (any, error)) (any, error) {
	c := r.questions.DoChan(question, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askFor)
		defer cancel()
		return answer(ctx)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-c:
		return a.Val, a.Err
	}
}

func (r *Registry) report(err error) {
	if err != nil {
		r.cfg.Report(err)
	}
}
