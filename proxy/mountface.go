package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/granary-oci/granary/proxy/ref"
)

const (
	// MountHeader names the mount that a request for a file is made for.
	MountHeader = "Granary-Mount"
	// MountType is the media type of what is said of a mount: a line of JSON each time that
	// something has changed, see [MountStatus].
	MountType = "application/x-ndjson"

	tellEvery  = time.Second
	tellAtMost = 15 // times that nothing has changed
)

// mount answers a request by which an image, or a layer, is said to be mounted for as
// long as the answer lasts. Or, with the parameter now, one about a mount that there is:
// what is known of it, once. With rest it has the rest of the image fetched.
func (h *Handler) mount(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) (sent bool, err error) {
	q := r.URL.Query()
	about := MountRequest{ID: q.Get("id"), Ref: q.Get("ref"), Dir: q.Get("dir"), Prefetch: q.Has("prefetch"), Kernel: q.Has("kernel")}
	if q.Has("layer") {
		about.Layer = req.Digest
	} else {
		about.Image = req.Digest
	}
	if about.ID == "" || len(about.ID) > 64 || len(about.Ref) > maxMountText || len(about.Dir) > maxMountText {
		return false, errQuery("a mount has an id of 64 bytes at most, a ref and a dir")
	}
	w.Header().Set("Content-Type", MountType)
	w.Header().Set("Cache-Control", "no-store")
	if q.Has("now") {
		m := h.registry.mountFor(about.ID, p)
		if m == nil || m.image != req.Digest {
			return false, fmt.Errorf("mount %.64q: %w", about.ID, errNoMount)
		}
		if q.Has("rest") {
			m.FetchRest()
		}
		return true, json.NewEncoder(w).Encode(m.Status())
	}
	if r.Method == http.MethodHead {
		return true, nil
	}
	ctx, end := context.WithCancel(r.Context())
	m, err := p.Mount(ctx, about)
	if err != nil {
		end()
		return false, err
	}
	defer m.End()
	defer end()
	if q.Has("rest") {
		m.FetchRest()
	}
	return true, h.tellOf(ctx, w, m)
}

// tellOf tells of a mount until it ends.
func (h *Handler) tellOf(ctx context.Context, w http.ResponseWriter, m *Mount) error {
	client, lines := http.NewResponseController(w), json.NewEncoder(w)
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	last, unchanged := MountStatus{}, 0
	for {
		if now := m.Status(); now != last || unchanged == tellAtMost {
			extend(client, lendBytes)
			if err := lines.Encode(now); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			if err := client.Flush(); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			last, unchanged = now, 0
		}
		unchanged++
		select {
		case <-tick.C:
		case <-h.registry.mounts.done():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// mountFor returns the mount that a request names, if it is one of that repository.
func (r *Registry) mountFor(id string, p *Repository) *Mount {
	m := r.mounts.find(id)
	if m == nil || m.p.Repository != p.Repository {
		return nil
	}
	return m
}

// served counts what a mount, or another client, was given of a file of an image.
func (r *Registry) served(image Image, m *Mount, t *travel, n int64) {
	from, face := t.sum(), "http"
	if m != nil {
		m.demanded.addAll(from)
		face = "fuse"
	}
	if n > 0 {
		r.cfg.Served(image, face, from.Source(), n)
	}
}
