package proxy

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/proxy/ref"
)

// shelf keeps what a [rebuild.Hub] makes where other things are that are derived from layers.
type shelf struct {
	*lazy.Layers
	kind lazy.Kind
}

// Get implements [rebuild.Shelf].
func (s shelf) Get(ctx context.Context, layer digest.Digest) ([]byte, error) {
	return s.Derived(ctx, s.kind, layer)
}

// Put implements [rebuild.Shelf].
func (s shelf) Put(ctx context.Context, layer digest.Digest, p []byte) {
	s.SetDerived(ctx, s.kind, layer, p)
}

func (r *Registry) newHub() *rebuild.Hub {
	return rebuild.NewHub(rebuild.HubConfig{
		Open:    r.openWhole,
		Shelves: r.shelves(),
		Offers:  shelf{r.cfg.Layers, rebuild.OfferKind},
		Report:  r.report,
	})
}

// shelves keep what the contents of layers are read by.
func (r *Registry) shelves() rebuild.Shelves {
	return rebuild.Shelves{Maps: shelf{r.cfg.Layers, rebuild.MapKind}, Indexes: shelf{r.cfg.Layers, lazy.KindGzip}}
}

// MakeOffers makes offers of layers that other sites ask for, and of those of [Registry.OfferLayer], until ctx
// ends.
func (r *Registry) MakeOffers(ctx context.Context) {
	if r.hub != nil {
		r.hub.Run(ctx)
	}
}

// OfferLayer has an offer made of a layer, all of which is stored, before another site asks for it, unless it is
// another member that answers for it.
func (r *Registry) OfferLayer(d digest.Digest, size int64) {
	if peers := r.cfg.Peers; r.hub == nil || peers != nil && !peers.Derives(rebuild.OfferKind, d) || !r.isLayer(d) {
		return
	}
	r.hub.Ahead(d, size)
}

// Offers returns what has become of offers.
func (r *Registry) Offers() (c rebuild.Counts) {
	if r.hub != nil {
		c = r.hub.Counts()
	}
	return c
}

// openWhole opens a layer of which all is here, whoever may read it. The error is [chunk.ErrNotFound] if it is not.
func (r *Registry) openWhole(ctx context.Context, d digest.Digest) (l rebuild.Layer, err error) {
	size := int64(0)
	if info, err := r.cfg.Store.Stat(d); err == nil {
		size = info.Size
	}
	if r.Stored(d, size) {
		return r.wholeFrom(ctx, d, size, r.cfg.Store)
	}
	kept, err := r.cfg.Beside.Open(ctx, d)
	if err != nil {
		return l, fmt.Errorf("layer %s: %w", d, err)
	}
	return r.wholeFrom(ctx, d, kept.Size(), kept)
}

func (r *Registry) wholeFrom(ctx context.Context, d digest.Digest, size int64, src chunk.Source) (l rebuild.Layer, err error) {
	m, err := chunk.Grid(d, size)
	if err != nil {
		return l, err
	}
	b := chunk.NewBlob(m, src, chunk.BlobConfig{Budget: r.cfg.Budget})
	return rebuild.Layer{ReaderAt: b.ReaderAt(ctx), Size: size, Release: r.cfg.Store.Retain(d, size)}, nil
}

// whole opens a layer that the caller may read, and of which all is here: nothing is fetched to offer it.
func (p *Repository) whole(ctx context.Context, d digest.Digest) (l rebuild.Layer, err error) {
	r := p.registry
	size, err := p.Stat(ctx, d)
	if err != nil {
		return l, err
	}
	if r.mayShare(p.Host, d) && r.settled(d, size) {
		return r.wholeFrom(ctx, d, size, r.cfg.Store)
	}
	kept, err := r.lentKept(ctx, p.Host, d, size)
	if err != nil {
		return l, fmt.Errorf("layer %s: not all of it is stored here and has matched its digest: %w", d, err)
	}
	return r.wholeFrom(ctx, d, size, kept)
}

// settled is Stored for a blob whose last chunk may have been written a moment ago.
func (r *Registry) settled(d digest.Digest, size int64) bool {
	if r.Stored(d, size) || !r.cfg.Store.Proven(d) {
		return r.Stored(d, size)
	}
	r.report(r.cfg.Store.Sync())
	return r.Stored(d, size)
}

// change answers a request of another site for the offer of a layer, for its content map, or for some of its contents. All tell what is
// in it, and are for those who may read it.
func (h *Handler) change(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) (sent bool, err error) {
	hub := h.registry.hub
	layer, err := p.whole(r.Context(), req.Digest)
	if err != nil {
		return false, err
	}
	defer layer.Release()
	if hub == nil {
		return false, &rebuild.NoneError{What: "offer or content map", Reason: "this node makes none"}
	}
	var body []byte
	query := r.URL.Query()
	switch {
	case req.Kind == ref.Recipe:
		w.Header().Set("Content-Type", rebuild.OfferType)
		body, err = hub.Offer(r.Context(), req.Digest, layer.Size)
	case !query.Has(rebuild.ChunksQuery):
		w.Header().Set("Content-Type", rebuild.MapType)
		body, err = hub.Map(r.Context(), req.Digest, layer.Size)
	default:
		w.Header().Set("Content-Type", rebuild.ContentsType)
		d := p.dictionary(r.Context(), query)
		if d != nil {
			defer d.Layer.Release()
		}
		body, err = hub.Contents(r.Context(), req.Digest, layer, query.Get(rebuild.ChunksQuery), d)
	}
	if err != nil {
		return false, err
	}
	w.Header().Set("Cache-Control", "max-age=31536000, immutable")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == http.MethodHead {
		return true, nil
	}
	_, err = (&paced{w: w, client: http.NewResponseController(w)}).Write(body)
	return true, err
}

// dictionary returns what the caller wants contents to be compressed with, if it is here and the caller may read it; else nil.
func (p *Repository) dictionary(ctx context.Context, query url.Values) *rebuild.Dictionary {
	d := digest.Digest(query.Get(rebuild.DictionaryQuery))
	if d.Validate() != nil {
		return nil
	}
	l, err := p.registry.openWhole(ctx, d)
	if err != nil {
		return nil // without asking anybody whether the caller may
	}
	l.Release()
	if l, err = p.whole(ctx, d); err != nil {
		return nil
	}
	return &rebuild.Dictionary{Name: d, Layer: l, Chunks: query.Get(rebuild.DictionaryChunksQuery)}
}
