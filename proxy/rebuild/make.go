package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/recipe"
)

const (
	// Least is the size in bytes of the smallest layer that there are offers of: less is fetched
	// sooner than it is talked about.
	Least = 1 << 20
	// maxRatio is how many times its size a layer may unpack to. What packs better than that is soon
	// fetched, and was perhaps made to keep somebody busy.
	maxRatio = 64
	// mapPace and offerPace are about how many bytes of a layer are looked at in a second.
	mapPace   = 40 << 20
	offerPace = 8 << 20
)

// makeMap makes the map of a layer, unless that was done before. It takes a CPU second for 100 MB of what the layer unpacks to.
func (h *Hub) makeMap(ctx context.Context, name digest.Digest) error {
	m := h.open(ctx, name)
	if m.contents != nil || m.unreadable != "" {
		return nil
	}
	return h.look(ctx, name, func(layer Layer) (*made, error) {
		c, err := survey(ctx, layer)
		if err == nil {
			err = h.cfg.keep(ctx, name, c)
		}
		reason, never := noneBecause(err)
		switch {
		case err == nil:
			return h.withOffer(ctx, name, c), nil
		case !never:
			return nil, err
		}
		h.count(func(c *Counts) { c.None++ })
		h.cfg.Maps.Put(ctx, name, append([]byte{isUnreadable}, reason...))
		return &made{unreadable: reason, none: reason}, nil
	})
}

// makeOffer makes the offer of a layer, after its map, unless that was done before. It takes a CPU second for 10 to 30 MB of what
// the layer unpacks to, to find the recipe.
func (h *Hub) makeOffer(ctx context.Context, name digest.Digest) error {
	m, err := h.mapped(ctx, name)
	if err != nil || m.offer != nil || m.none != "" {
		return err
	}
	return h.look(ctx, name, func(layer Layer) (*made, error) {
		how, err := recipe.FindWithin(ctx, layer, layer.Size, maxRatio*layer.Size)
		offer := []byte(nil)
		if err == nil {
			offer, err = EncodeOffer(how, m.chunks)
		}
		reason, never := noneBecause(err)
		switch {
		case err == nil:
			if err := h.keepRecipe(ctx, name, how); err != nil {
				return nil, err
			}
			h.count(func(c *Counts) { c.Made++ })
			return &made{contents: m.contents, offer: offer}, nil
		case !never:
			return nil, err
		}
		h.count(func(c *Counts) { c.None++ })
		h.cfg.Offers.Put(ctx, name, append([]byte{isNone}, reason...))
		return &made{contents: m.contents, none: reason}, nil
	})
}

// mapped returns what is known of a layer once its map is.
func (h *Hub) mapped(ctx context.Context, name digest.Digest) (*made, error) {
	m := h.open(ctx, name)
	if m.contents != nil || m.unreadable != "" {
		return m, nil
	}
	j := h.maps.enqueue(name, 0, true)
	if j == nil {
		return nil, &LaterError{longest, "maps of as many layers as can wait are to be made first"}
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-j.done:
	}
	if j.err != nil {
		return nil, j.err
	}
	if m = h.open(ctx, name); m.contents == nil && m.unreadable == "" {
		return nil, &LaterError{longest, "the map of the layer was made, and has made room for others since"}
	}
	return m, nil
}

// look has something made of a layer, and remembers that.
func (h *Hub) look(ctx context.Context, name digest.Digest, look func(Layer) (*made, error)) error {
	layer, err := h.cfg.Open(ctx, name)
	if err != nil {
		return err
	}
	defer layer.Release()
	began := time.Now()
	m, err := look(layer)
	h.count(func(c *Counts) { c.Seconds += time.Since(began).Seconds() })
	if err != nil {
		err = fmt.Errorf("layer %s: %w", name, err)
		if ctx.Err() == nil {
			h.count(func(c *Counts) { c.Failed++ })
			h.cfg.Report(err)
		}
		return err
	}
	h.recent.add(name, m)
	return nil
}

func (h *Hub) keepRecipe(ctx context.Context, name digest.Digest, how *recipe.Recipe) error {
	p, err := how.Encode()
	if err == nil {
		h.cfg.Offers.Put(ctx, name, append([]byte{isOffer}, p...))
	}
	return err
}

// never are the errors that say of a layer that there will never be an offer, or a map.
var never = []error{recipe.ErrNone, toc.ErrFormat, toc.ErrMalformed, toc.ErrLimit, toc.ErrUnsupported, io.ErrUnexpectedEOF}

const maxReason = 1 << 10 // bytes

// noneBecause returns why there is no offer of a layer, if err says that there will never be one.
func noneBecause(err error) (reason string, ok bool) {
	for _, e := range never {
		if errors.Is(err, e) {
			reason = err.Error()
			return reason[:min(len(reason), maxReason)], true
		}
	}
	return "", false
}
