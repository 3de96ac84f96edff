package rebuild

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/recipe"
)

// Shelf keeps one kind of what is made of layers, by the layer's digest. It may lose what it keeps.
type Shelf interface {
	// Get returns what is kept. Any error says that it is not there.
	Get(ctx context.Context, layer digest.Digest) ([]byte, error)
	Put(ctx context.Context, layer digest.Digest, p []byte)
}

// MapKind and OfferKind are the kinds of what is kept of maps and of offers. The latter's number is to be raised when
// package recipe knows more encoders, so that layers without a recipe are looked at again.
const (
	MapKind   = "contents-1"
	OfferKind = "offer-2"
)

// What is kept of an offer begins with one of these. Behind it is the recipe, or why there is none.
const (
	isOffer = '+'
	isNone  = '-'
)

// made is what was made of a layer. It is not changed. The zero value is nothing.
type made struct {
	unreadable string // why its contents are not to be had; "" while that is not known, or they are
	*contents
	none  string // why there is no offer; "" while that is not known, or there is one
	offer []byte // as it is sent; nil while there is none
}

// takes returns about how many bytes of memory it takes.
func (m *made) takes() (n int64) {
	n = int64(len(m.unreadable) + len(m.none) + len(m.offer))
	if m.contents == nil {
		return n
	}
	n += int64(len(m.packed)) + 100*int64(len(m.chunks.Chunks)) + m.access.takes()
	for _, c := range m.chunks.Chunks {
		n += int64(len(c.Inline))
	}
	return n
}

// Shelves keep what the contents of layers are read by.
type Shelves struct {
	// Maps keeps what is of the kind MapKind, and Indexes what package toc/gzip reads layers by: others may keep such of
	// their own there.
	Maps, Indexes Shelf
}

// contents returns what is kept of a layer's contents; or why they are not to be had, or nothing.
func (s Shelves) contents(ctx context.Context, layer digest.Digest) (c *contents, unreadable string) {
	p, err := s.Maps.Get(ctx, layer)
	if err != nil {
		return nil, ""
	}
	if len(p) > 1 && p[0] == isUnreadable {
		return nil, string(p[1:])
	}
	c, err = readContents(p, func() ([]byte, error) { return s.Indexes.Get(ctx, layer) })
	if err != nil {
		return nil, ""
	}
	if x, ok := c.access.(gzipTar); ok && x.Blob.OCI() != layer {
		return nil, ""
	}
	return c, ""
}

// keep keeps a map and what its contents are read by, of whose table no more is needed then.
func (s Shelves) keep(ctx context.Context, layer digest.Digest, c *contents) error {
	if x, ok := c.access.(gzipTar); ok {
		var b bytes.Buffer
		if err := x.Encode(&b); err != nil {
			return err
		}
		if b.Len() > maxIndex {
			return fmt.Errorf("%w: an index of %d bytes", toc.ErrLimit, b.Len())
		}
		s.Indexes.Put(ctx, layer, b.Bytes())
		x.Table = new(toc.TOC)
	}
	s.Maps.Put(ctx, layer, c.append(nil))
	return nil
}

// kept returns what is kept of a layer.
func (h *Hub) kept(ctx context.Context, layer digest.Digest) *made {
	c, unreadable := h.cfg.contents(ctx, layer)
	if c == nil {
		return &made{unreadable: unreadable, none: unreadable}
	}
	return h.withOffer(ctx, layer, c)
}

// withOffer returns contents, and what is kept of an offer with them.
func (h *Hub) withOffer(ctx context.Context, layer digest.Digest, c *contents) *made {
	m := &made{contents: c}
	p, err := h.cfg.Offers.Get(ctx, layer)
	switch {
	case err != nil || len(p) < 2:
	case p[0] == isNone:
		m.none = string(p[1:])
	default:
		if how, err := recipe.Decode(p[1:]); err == nil && how.Blob.OCI() == layer {
			m.offer, _ = EncodeOffer(how, c.chunks) // or it is made again
		}
	}
	return m
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
