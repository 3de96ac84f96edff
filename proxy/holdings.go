package proxy

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
)

// Bounds of what is looked through for [Registry.Holdings].
const (
	maxHeldTags      = 1 << 16
	maxHeldManifests = 1 << 16
	maxHeldBlobs     = 1 << 14 // of one image
)

// Holding is an image of which something is stored.
type Holding struct {
	Repository string        `json:"repository"`
	Tags       []string      `json:"tags,omitempty"` // that mean it, as far as is known
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"mediaType,omitempty"`
	Blobs      int           `json:"blobs"`  // and manifests that are named by what is stored
	Size       int64         `json:"size"`   // of these, in bytes
	Stored     int64         `json:"stored"` // bytes of them
	Alone      int64         `json:"alone"`  // of these, bytes that no other image here refers to
	Imported   bool          `json:"imported,omitempty"`

	members map[digest.Digest]int64
	own     []digest.Digest // members that no other image refers to
}

// Ref is how people ask for the image.
func (h Holding) Ref() string {
	if len(h.Tags) > 0 {
		return h.Repository + ":" + h.Tags[0]
	}
	return h.Repository + "@" + string(h.Digest)
}

// Holdings returns the images of which anything is stored, those that take most of the store
// first. What belongs to an image is what its stored manifests refer to: of an index that was
// pulled for one platform the other platforms' images are not counted. It looks through the
// whole catalog, and is for people to ask now and then.
func (r *Registry) Holdings(ctx context.Context) []Holding {
	all, _ := r.holdings(ctx)
	return all
}

// holdings is Holdings. Unless it is complete, other images may have what seems to be one's own.
func (r *Registry) holdings(ctx context.Context) (found []Holding, complete bool) {
	c := r.cfg.Catalog
	tags, manifests := c.AllTags(maxHeldTags), c.Manifests(maxHeldManifests)
	type image struct {
		repository string
		digest     digest.Digest
	}
	complete = len(tags) < maxHeldTags && len(manifests) < maxHeldManifests
	roots := make(map[image]*Holding)
	add := func(repository string, d digest.Digest) *Holding {
		h := roots[image{repository, d}]
		if h == nil {
			h = &Holding{Repository: repository, Digest: d, Imported: c.Imported(d)}
			roots[image{repository, d}] = h
		}
		return h
	}
	for k, t := range tags {
		i := strings.LastIndexByte(k, ':')
		if repository, tag := k[:i], k[i+1:]; r.storesAny(t.Digest) && !tagOfReferrers.MatchString(tag) {
			h := add(repository, t.Digest)
			h.Tags, h.MediaType = append(h.Tags, tag), t.MediaType
		}
	}
	below := make(map[image]bool) // manifests that others refer to are no images of their own
	for d, repositories := range manifests {
		if !r.storesAny(d) {
			continue
		}
		for _, l := range r.refsOf(ctx, d) {
			if l.role == graph.Subject {
				continue // which it is about, and not what it consists of
			}
			for _, repository := range repositories {
				below[image{repository, l.digest}] = true
			}
		}
	}
	for d, repositories := range manifests {
		for _, repository := range repositories {
			if r.storesAny(d) && !below[image{repository, d}] {
				add(repository, d)
			}
		}
	}
	all := slices.Collect(maps.Values(roots))
	users := make(map[digest.Digest]int)
	for _, h := range all {
		h.members = r.membersOf(ctx, h.Digest)
		complete = complete && len(h.members) < maxHeldBlobs && ctx.Err() == nil
		for d := range h.members {
			users[d]++
		}
	}
	found = make([]Holding, 0, len(all))
	for _, h := range all {
		h.sum(r.cfg.Store, users)
		slices.Sort(h.Tags)
		if h.Stored > 0 {
			found = append(found, *h)
		}
	}
	slices.SortFunc(found, func(a, b Holding) int {
		return cmp.Or(cmp.Compare(b.Stored, a.Stored), cmp.Compare(a.Ref(), b.Ref()), cmp.Compare(a.Digest, b.Digest))
	})
	return found, complete
}

func (r *Registry) storesAny(d digest.Digest) bool {
	_, err := r.cfg.Store.Stat(d)
	return err == nil
}

// membersOf returns the sizes of all that belongs to an image, as far as its manifests are
// stored.
func (r *Registry) membersOf(ctx context.Context, root digest.Digest) map[digest.Digest]int64 {
	all := make(map[digest.Digest]int64)
	next := []digest.Digest{root}
	if info, err := r.cfg.Store.Stat(root); err == nil {
		all[root] = info.Size
	}
	for len(next) > 0 && len(all) < maxHeldBlobs {
		d := next[0]
		next = next[1:]
		for _, l := range r.refsOf(ctx, d) {
			if _, known := all[l.digest]; known || l.role == graph.Subject {
				continue
			}
			leads := l.role != graph.Layer && l.role != graph.Config
			if leads && !r.storesAny(l.digest) {
				continue // another platform's, which was not asked for
			}
			all[l.digest] = l.size
			if leads {
				next = append(next, l.digest)
			}
		}
	}
	return all
}

// sum adds up what is stored of a holding.
func (h *Holding) sum(store Store, users map[digest.Digest]int) {
	for d, size := range h.members {
		h.Blobs, h.Size = h.Blobs+1, h.Size+size
		info, err := store.Stat(d)
		if err != nil {
			continue
		}
		h.Stored += info.Stored
		if users[d] == 1 {
			h.Alone += info.Stored
			h.own = append(h.own, d)
		}
	}
	h.members = nil // which are many, and holdings are kept for a while
}

// Evictable returns the blobs that belong to what a reference means here and to no other
// image, and the image. What was imported is not among them unless that is said. The error is
// that no such image is stored, or that there are too many to tell.
func (r *Registry) Evictable(ctx context.Context, want ref.Reference, imported bool) (own []digest.Digest, h Holding, err error) {
	all, complete := r.holdings(ctx)
	for _, h := range all {
		if h.Repository != want.Repository.String() || h.Digest != want.Digest && (want.Digest != "" || !slices.Contains(h.Tags, want.Tag)) {
			continue
		}
		if !complete {
			return nil, h, fmt.Errorf("%s: there is too much in the store to tell what belongs to no other image; granary gc evicts by age", want)
		}
		own = slices.DeleteFunc(h.own, func(d digest.Digest) bool { return !imported && r.cfg.Catalog.Imported(d) })
		return own, h, nil
	}
	return nil, h, &notHeldError{want}
}

// notHeldError says that nothing is stored of an image.
type notHeldError struct{ want ref.Reference }

func (e *notHeldError) Error() string { return e.want.String() + ": nothing of it is stored" }
func (e *notHeldError) Unwrap() error { return chunk.ErrNotFound }
