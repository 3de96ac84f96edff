package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/proxy/trace"
)

const (
	// rebuildFor bounds the work for a layer that is made again. It goes on while nobody waits for it: clients that
	// hear nothing for minutes come again, and would have it begun anew each time.
	rebuildFor = time.Hour
	// maxOlder is how many older layers are thought of.
	maxOlder = 8
)

// rebuild is [Repository.rebuild] for a client, which waits for its answer meanwhile.
func (h *Handler) rebuild(ctx context.Context, client *http.ResponseController, p *Repository, b *Blob) {
	_ = client.SetWriteDeadline(time.Now().Add(rebuildFor + answerWithin)) // one that is over cannot be extended
	p.rebuild(ctx, b)
	_ = client.SetWriteDeadline(time.Now().Add(answerWithin))
}

// rebuild has a layer made again of what older layers of the repository have, before all of it is read, if that is better
// than fetching it, see package rebuild. Then it is stored here, or a member has it. It takes as long as that takes,
// while ctx lives. Whatever goes wrong, the layer is fetched as ever.
func (p *Repository) rebuild(ctx context.Context, b *Blob) {
	r, want := p.registry, chunkstore.Whole{Digest: b.Digest(), Size: b.Size()}
	if r.cfg.Edge == nil || r.cfg.Keeps != nil || p.lent || b.kept != nil || b.Proven() || !p.isGzip(want) || r.mostlyStored(want) {
		return
	}
	old := p.older(ctx, want)
	if peers := r.cfg.Peers; peers != nil && !peers.Alone() {
		_, err := r.rebuilds.Do(ctx, "ask\n"+p.rebuildKey(want), rebuildFor, func(ctx context.Context) (any, error) {
			return peers.Rebuild(ctx, p.in(p.identities()[0]), want, old)
		})
		if errors.Is(err, chunk.ErrNotFound) {
			p.rebuildForAll(ctx, want, old)
		}
		return
	}
	p.rebuildHere(ctx, want, old)
}

// isGzip reports whether a blob may be a layer in gzip that is large enough.
func (p *Repository) isGzip(w chunkstore.Whole) bool {
	m, _ := p.registry.cfg.Catalog.Member(p.String(), w.Digest)
	known := m.MediaType != "" && m.MediaType != "application/octet-stream"
	return w.Size >= rebuild.Least && w.Digest.Algorithm() == digest.SHA256 && (!known || strings.HasSuffix(m.MediaType, "gzip"))
}

// mostlyStored reports whether half of a blob is here: the rest is fetched sooner.
func (r *Registry) mostlyStored(w chunkstore.Whole) bool {
	info, err := r.cfg.Store.Stat(w.Digest)
	return err == nil && info.Stored > w.Size/2
}

// older returns layers of the repository that are here and may have much in common with another one.
func (p *Repository) older(ctx context.Context, w chunkstore.Whole) (all []chunkstore.Whole) {
	m, err := chunk.Grid(w.Digest, w.Size)
	if err != nil {
		return nil
	}
	for _, o := range (storedOf{p}).Alike(ctx, m) {
		if w := (chunkstore.Whole{Digest: o.Blob(), Size: o.Size()}); p.isGzip(w) {
			all = append(all, w)
		}
	}
	return nearest(all, w)
}

// olderElsewhere returns layers of the repository that other members have, by what these know of it.
func (p *Repository) olderElsewhere(ctx context.Context, w chunkstore.Whole) (all []chunkstore.Whole) {
	p.recall(ctx)
	for d, m := range p.registry.cfg.Catalog.Members(p.String(), mostLooked) {
		o := chunkstore.Whole{Digest: d, Size: m.Size}
		if (m.Confirmed || m.Imported) && d != w.Digest && m.Size >= w.Size/2 && m.Size <= 2*w.Size && p.isGzip(o) {
			all = append(all, o)
		}
	}
	return slices.DeleteFunc(nearest(all, w), func(o chunkstore.Whole) bool { return !p.registry.cfg.Peers.Provided(ctx, p.Host, o.Digest) })
}

// nearest returns those layers, of others, that are of about the size of one: an image has one for each that it had before.
func nearest(all []chunkstore.Whole, w chunkstore.Whole) []chunkstore.Whole {
	slices.SortStableFunc(all, func(a, b chunkstore.Whole) int { return cmp.Compare(apartBy(a.Size, w.Size), apartBy(b.Size, w.Size)) })
	return all[:min(len(all), maxOlder)]
}

func apartBy(a, b int64) int64 { return max(a-b, b-a) }

// RebuildFor has a layer made again for another member, which has seen that its client may read it and
// older ones in the repository. It reports whether all of it is here then.
func (r *Registry) RebuildFor(ctx context.Context, in In, want chunkstore.Whole, old []chunkstore.Whole) (made bool, err error) {
	p, err := r.MakeFor(in)
	if err != nil || r.cfg.Edge == nil || r.cfg.Keeps != nil {
		return false, err
	}
	if !r.Stored(want.Digest, want.Size) {
		p.rebuildForAll(ctx, want, old)
	}
	return r.Stored(want.Digest, want.Size) && r.mayShare(p.Host, want.Digest), ctx.Err()
}

// rebuildForAll makes a layer again for all members, unless one has it, from whom it is got. Older layers are
// those that whoever asks has, that are here, and that others have.
func (p *Repository) rebuildForAll(ctx context.Context, want chunkstore.Whole, old []chunkstore.Whole) {
	if p.registry.cfg.Peers.Provided(ctx, p.Host, want.Digest) {
		return
	}
	all := p.older(ctx, want)
	for _, o := range append(old, p.olderElsewhere(ctx, want)...) {
		if !slices.Contains(all, o) {
			all = append(all, o)
		}
	}
	p.rebuildHere(ctx, want, nearest(all, want))
}

// rebuildHere makes a layer again, once for all who want it at a time.
func (p *Repository) rebuildHere(ctx context.Context, want chunkstore.Whole, old []chunkstore.Whole) {
	r := p.registry
	key := p.rebuildKey(want)
	if len(old) == 0 && !r.tars.has(p.String(), want.Digest) || !r.cfg.Edge.Tries(want.Digest) {
		r.rebuilds.Wait(ctx, key) // somebody else may have older layers
		return
	}
	_, _ = r.rebuilds.Do(ctx, key, rebuildFor, func(ctx context.Context) (any, error) {
		go r.rebuilds.Wait(r.cfg.Edge.Life(), key) // for it not to end with who waits
		ctx, span := trace.Start(ctx, "rebuild layer", otel.SpanKindInternal, attribute.String("oci.reference", string(want.Digest)))
		err := p.doRebuild(ctx, want, old)
		span.End(err)
		return nil, err
	})
}

func (p *Repository) rebuildKey(w chunkstore.Whole) string { return p.Host + "\n" + string(w.Digest) }

func (p *Repository) doRebuild(ctx context.Context, want chunkstore.Whole, old []chunkstore.Whole) error {
	w := &rebuild.Wanted{Repository: p.String(), Digest: want.Digest, Size: want.Size, Givers: p.givers()}
	if len(w.Givers) == 0 {
		return nil
	}
	image := p.image(ctx, want.Digest)
	w.Came = func(from string, n int64) { p.registry.cfg.Came(image, from, n) }
	for _, o := range old {
		w.Old = append(w.Old, rebuild.Old{Digest: o.Digest, Size: o.Size, Open: func(ctx context.Context) io.ReadCloser { return p.openOlder(ctx, o) }})
	}
	w.Turn = p.registry.turns.begin
	w.Kept = p.contents(ctx, LayerRef{Layer: want.Digest}).chunk
	w.Keep = func(ctx context.Context, from io.Reader) error {
		err := p.registry.ImportBlob(ctx, p.Repository, want.Digest, want.Size, 0, from)
		if err == nil {
			p.shown(want.Digest)
			p.settled(want.Digest)
		}
		return err
	}
	return p.registry.cfg.Edge.Rebuild(ctx, w)
}

// givers returns those parents who are asked how a layer is made again: none, if the registry has a place
// on this machine before them.
func (p *Repository) givers() (all []rebuild.Giver) {
	up, err := p.registry.cfg.Upstream(p.Repository, p.identities()[0].Authorization())
	places, several := up.(Mirrors)
	if err != nil || !several {
		return nil
	}
	for _, place := range places {
		g, is := place.(rebuild.Giver)
		if !is {
			break
		}
		all = append(all, g)
	}
	return all
}

// openOlder opens an older layer, all of which is here, or another member has it.
func (p *Repository) openOlder(ctx context.Context, w chunkstore.Whole) io.ReadCloser {
	m, err := chunk.Grid(w.Digest, w.Size)
	if err != nil {
		return io.NopCloser(failing{err})
	}
	src := chunk.Source(olderHere{p})
	if peers := p.registry.cfg.Peers; peers != nil && !peers.Alone() {
		src = chunk.First(src, peers.Held(p.Host))
	}
	return chunk.NewBlob(m, src, chunk.BlobConfig{Window: chunk.StripeSize, Budget: p.registry.cfg.Budget}).Open(ctx)
}

// olderHere are chunks of older layers that are here, stored or beside the store. What of the latter is
// wrong is not what is looked for.
type olderHere struct{ *Repository }

// Get implements [chunk.Source].
func (s olderHere) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	b, err := s.near(ref.Blob).Get(ctx, ref)
	if errors.Is(err, chunk.ErrNotFound) && s.registry.cfg.Catalog.Possesses(s.Host, ref.Blob) {
		return s.registry.cfg.Beside.Read(ctx, ref)
	}
	return b, err
}

// failing is a reader of nothing.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
