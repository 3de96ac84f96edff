package rebuild

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/gzip"
)

// Shelf keeps one kind of what is made of layers, by the layer's digest. It may lose what it keeps.
type Shelf interface {
	// Get returns what is kept. Any error says that it is not there.
	Get(ctx context.Context, layer digest.Digest) ([]byte, error)
	Put(ctx context.Context, layer digest.Digest, p []byte)
}

// OfferKind is the kind of what is kept of offers. Its number is to be raised when package recipe knows more
// encoders, so that layers without a recipe are looked at again.
const OfferKind = "offer-1"

// What is kept of an offer begins with one of these. Behind it is the offer, as it is sent, or why there is
// none.
const (
	isOffer = '+'
	isNone  = '-'
)

// made is what was made of a layer: its offer, and what its contents are read by; or why there
// is none. It is not changed.
type made struct {
	none   string
	offer  []byte // as it is sent
	chunks *cdc.Map
	index  *gzip.Index // without its table, once it is kept
}

// takes returns about how many bytes of memory it takes.
func (m *made) takes() (n int64) {
	if m.none != "" {
		return int64(len(m.none))
	}
	n = int64(len(m.offer)) + 100*int64(len(m.chunks.Chunks)+len(m.index.Points))
	for _, c := range m.chunks.Chunks {
		n += int64(len(c.Inline))
	}
	for _, p := range m.index.Points {
		n += int64(len(p.Window))
	}
	return n
}

// pointsOf returns an index without its table of files, which would take more memory than the rest.
func pointsOf(x *gzip.Index) *gzip.Index {
	points := *x
	points.Table = new(toc.TOC)
	return &points
}

// kept returns what is kept of a layer, or nil unless all of that is there.
func (h *Hub) kept(ctx context.Context, layer digest.Digest) *made {
	p, err := h.cfg.Offers.Get(ctx, layer)
	if err == nil && len(p) > 1 && p[0] == isNone {
		return &made{none: string(p[1:])}
	}
	o, err := h.keptOffer(ctx, layer)
	if err != nil {
		return nil
	}
	packed, err := h.cfg.Indexes.Get(ctx, layer)
	if err != nil {
		return nil
	}
	x, err := gzip.Decode(bytes.NewReader(packed))
	if err != nil || x.Blob != o.Recipe.Blob || x.TarSize != o.Map.Size() {
		return nil
	}
	return &made{offer: p[1:], chunks: o.Map, index: pointsOf(x)}
}

// keptOffer returns the offer that is kept of a layer.
func (h *Hub) keptOffer(ctx context.Context, layer digest.Digest) (Offer, error) {
	p, err := h.cfg.Offers.Get(ctx, layer)
	if err != nil {
		return Offer{}, err
	}
	if len(p) == 0 || p[0] != isOffer {
		return Offer{}, toc.ErrFormat
	}
	o, err := DecodeOffer(p[1:])
	if err == nil && o.Recipe.Blob.OCI() != layer {
		err = toc.ErrMalformed
	}
	return o, err
}

// Of what was made so much stays in memory, beside what was used last.
const (
	maxRecent      = 16 // layers
	maxRecentBytes = 64 << 20
)

// recent is what was made of the layers that were asked for last. The zero value is empty.
type recent struct {
	mu  sync.Mutex
	all []recentLayer // the one that was used last is the last
}

type recentLayer struct {
	name digest.Digest
	*made
}

func (r *recent) get(name digest.Digest) *made {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.all, func(l recentLayer) bool { return l.name == name })
	if i < 0 {
		return nil
	}
	found := r.all[i]
	r.all = append(slices.Delete(r.all, i, i+1), found)
	return found.made
}

func (r *recent) add(name digest.Digest, m *made) {
	r.forget(name)
	r.mu.Lock()
	defer r.mu.Unlock()
	first, total := len(r.all), int64(0)
	for first > 0 && len(r.all)-first < maxRecent-1 {
		if total += r.all[first-1].takes(); total > maxRecentBytes {
			break
		}
		first--
	}
	r.all = append(slices.Clone(r.all[first:]), recentLayer{name, m})
}

func (r *recent) forget(name digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(l recentLayer) bool { return l.name == name })
}
