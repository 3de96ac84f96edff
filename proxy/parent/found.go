package parent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Limits of what is found.
const (
	leastFound   = chunk.Size       // bytes: for smaller blobs finding somebody costs more than it brings
	findWithin   = 15 * time.Second // beside whoever reads
	foundFor     = 5 * time.Minute  // is not looked for again
	nobodyFor    = time.Minute      // the same, where there was nobody
	maxSearched  = 1024             // blobs of which that is remembered
	searchAtOnce = 16               // blobs; of others nobody is found meanwhile
	maxSites     = 64               // that were found and are remembered
	maxAtFault   = maxSites / 2     // of these; of more the one whose fault is longest ago gives way
	triedSites   = 3                // of a blob, for a run of chunks
)

// Finder finds sites that have all of a blob, see package tracker/dht, and says how they are connected
// to. It may take long.
type Finder func(ctx context.Context, d digest.Digest) ([]Config, error)

// finder remembers what was found. The zero value finds nobody.
type finder struct {
	find Finder
	ctx  context.Context

	mu    sync.Mutex
	blobs map[digest.Digest]*search
	sites map[string]*Parent
	going int // searches
}

type search struct {
	names []string
	again time.Time // until when nobody looks
	going bool
}

// Find has sites that are found asked for large blobs, after the parents, until ctx ends. They are
// asked for nothing but bytes, which no word of theirs makes right. It is called before anything is read.
func (ps *Parents) Find(ctx context.Context, find Finder) {
	f := &ps.finder
	f.find, f.ctx, f.blobs, f.sites = find, ctx, make(map[digest.Digest]*search), make(map[string]*Parent)
}

// sitesOf returns who was found to have a blob. When that is not known somebody looks, and nobody waits.
func (ps *Parents) sitesOf(d digest.Digest) (sites []*Parent) {
	f := &ps.finder
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.blobs[d]
	if s == nil {
		for other := range f.blobs {
			if len(f.blobs) < maxSearched {
				break
			}
			delete(f.blobs, other)
		}
		s = new(search)
		f.blobs[d] = s
	}
	if !s.going && f.going < searchAtOnce && time.Now().After(s.again) {
		s.going = true
		f.going++
		go ps.search(d, s)
	}
	for _, name := range s.names {
		if p := f.sites[name]; p != nil && len(sites) < triedSites {
			sites = append(sites, p)
		}
	}
	return sites
}

func (ps *Parents) search(d digest.Digest, s *search) {
	f := &ps.finder
	ctx, cancel := context.WithTimeout(f.ctx, findWithin)
	defer cancel()
	configs, err := f.find(ctx, d)
	f.mu.Lock()
	defer f.mu.Unlock()
	s.going, s.names = false, nil
	f.going--
	for _, cfg := range configs {
		if slices.ContainsFunc(ps.all, func(p *Parent) bool { return p.name == cfg.Name }) {
			continue // it is asked as the parent that it is
		}
		ps.meet(cfg)
		if f.sites[cfg.Name] != nil {
			s.names = append(s.names, cfg.Name)
		}
	}
	s.again = time.Now().Add(foundFor)
	if err != nil || len(s.names) == 0 {
		s.again = time.Now().Add(nobodyFor)
	}
}

// meet remembers a site, and where it was found last; f.mu is held.
func (ps *Parents) meet(cfg Config) {
	f := &ps.finder
	if known := f.sites[cfg.Name]; known != nil {
		known.move(cfg.Upstream.Dial)
		return
	}
	cfg.Upstream.Origin = chunk.Parent // without a name: who lends a chunk from there vouches for it himself
	p, err := newParent(cfg)
	if err != nil {
		return
	}
	if len(f.sites) >= maxSites {
		f.forgetOne()
	}
	f.sites[cfg.Name] = p
}

// forgetOne makes room for a site. Who is at fault is not forgotten for others' sake, unless so many are
// that these would have none; f.mu is held.
func (f *finder) forgetOne() {
	var fine, atFault []string
	for name, p := range f.sites {
		if p.usable() == nil {
			fine = append(fine, name)
		} else {
			atFault = append(atFault, name)
		}
	}
	var gone string
	if len(atFault) > maxAtFault {
		gone = slices.MinFunc(atFault, func(a, b string) int { return f.sites[a].lastFault().Compare(f.sites[b].lastFault()) })
	} else {
		gone = fine[0]
	}
	f.sites[gone].registry.Close()
	delete(f.sites, gone)
}

// Found is a repository as it is read from sites that are found. It has blobs alone.
type Found struct {
	parents *Parents
	name    ref.Repository
}

// Found returns a repository as it is read from sites that are found, in nobody's name, nil if nobody
// looks for any.
func (ps *Parents) Found(name ref.Repository) *Found {
	if ps.finder.find == nil {
		return nil
	}
	return &Found{ps, name}
}

var errNotFound = fmt.Errorf("sites that are found are asked for blobs alone: %w", chunk.ErrNotFound)

// Resolve finds nothing.
func (*Found) Resolve(context.Context, string) (r upstream.Resolved, err error) {
	return r, errNotFound
}

// Manifest finds nothing.
func (*Found) Manifest(context.Context, string) (m upstream.Manifest, err error) {
	return m, errNotFound
}

// Stat finds nothing.
func (*Found) Stat(context.Context, digest.Digest) (int64, error) { return 0, errNotFound }

// Get finds nothing.
func (*Found) Get(context.Context, string, url.Values, http.Header) (*http.Response, error) {
	return nil, errNotFound
}

// Blob returns a source of the chunks of blobs that somebody was found to have.
func (f *Found) Blob() chunk.Source { return foundSource{f} }

// Doubt has nobody asked for a blob for a while.
func (f *Found) Doubt(d digest.Digest) { f.parents.Doubt(f.name.Host, d) }

type foundSource struct{ *Found }

// Get implements [chunk.Source].
func (s foundSource) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, s, ref)
}

// GetRun implements [chunk.Runner].
func (s foundSource) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if len(refs) == 0 || refs[0].Total < leastFound {
		return chunk.ErrNotFound
	}
	var all []chunk.Source
	for _, p := range s.parents.sitesOf(refs[0].Blob) {
		all = append(all, missing{(&Repository{parents: s.parents, parent: p, name: s.name, up: p.repository(s.name, "")}).Blob()})
	}
	return chunk.GetRun(ctx, chunk.First(all...), refs, yield)
}

// missing is a source of which it is no news that it does not have something: that it cannot be reached, or
// does not let this site ask, is no word of anybody who would know.
type missing struct{ chunk.Source }

// GetRun implements [chunk.Runner].
func (m missing) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	var stop error
	err := chunk.GetRun(ctx, m.Source, refs, func(ref chunk.Ref, p []byte) error {
		stop = yield(ref, p)
		return stop
	})
	if err == nil || stop != nil || ctx.Err() != nil || errors.Is(err, chunk.ErrNotFound) {
		return err
	}
	return fmt.Errorf("%w (%v)", chunk.ErrNotFound, err)
}
