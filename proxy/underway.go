package proxy

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// What clients read now is known blob by blob; people want to know it image by image. So the
// manifests that were asked for lately are remembered, and a blob is shown with the one that
// names it. All this is for people to look at.

const (
	lingers    = 5 * time.Second // a blob is shown after its end, for clients have pauses
	maxAsked   = 256             // manifests that were asked for last
	maxShown   = 128             // images that are told
	maxMembers = 32 << 10        // references of all manifests that are remembered, of some 200 bytes each
	maxRefsOf  = 1024            // references of one that is remembered
	maxLinger  = 1024            // blobs that have ended and are shown
	maxNested  = 4               // indexes that lead to a manifest
	unnamed    = "blobs whose manifest is not known"
)

// LayerUnderWay is how far a blob of an image is.
type LayerUnderWay struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType,omitempty"`
	Size      int64         `json:"size"`    // in bytes
	Here      int64         `json:"here"`    // bytes that are stored, or, of what is not kept, have been sent
	Clients   int           `json:"clients"` // that read it now
}

// ImageUnderWay is an image of which something is being read from the start, or was until a
// moment ago.
type ImageUnderWay struct {
	Ref     string          `json:"ref"`
	Digest  digest.Digest   `json:"digest,omitempty"` // of the manifest that names the layers; "" if that is not known
	Size    int64           `json:"size"`             // of the layers together
	Here    int64           `json:"here"`
	Clients int             `json:"clients"`
	Layers  []LayerUnderWay `json:"layers"`
}

// readings are the blobs that are being read, and the manifests that lead to them.
type readings struct {
	mu      sync.Mutex
	open    map[readingKey]*reading
	recent  []asked // the latest last
	parsed  map[digest.Digest][]member
	members int // in parsed
}

// member is what is remembered of a reference.
type member struct {
	digest    digest.Digest
	mediaType string
	size      int64
	role      graph.Role
}

type readingKey struct {
	ref.Repository
	blob digest.Digest
}

// reading is a blob that is being read by clients.
type reading struct {
	size     int64
	furthest atomic.Int64 // byte that has been sent

	clients int       // guarded by readings.mu
	ended   time.Time // when the last of them left
}

// asked is a manifest that was asked for.
type asked struct {
	ref.Repository
	tag      string
	manifest digest.Digest
}

// manifest notes that a client was told of a manifest.
func (rs *readings) manifest(repo ref.Repository, tag string, d digest.Digest) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.recent = slices.DeleteFunc(rs.recent, func(a asked) bool {
		same := a.Repository == repo && a.manifest == d
		if same {
			tag = cmp.Or(tag, a.tag)
		}
		return same
	})
	rs.recent = append(rs.recent, asked{repo, tag, d})
	rs.recent = rs.recent[max(0, len(rs.recent)-maxAsked):]
}

// wasTold notes that a client was told of a manifest, and what it refers to if raw are its bytes and not nil: they are not
// stored yet when its blobs are asked for, or never.
func (r *Registry) wasTold(repo ref.Repository, tag string, d digest.Digest, raw []byte) {
	r.reads.manifest(repo, tag, d)
	if _, known := r.reads.refs(d); !known && raw != nil {
		r.reads.learn(d, raw)
	}
}

// begin notes that a client reads a blob, until end is called.
func (rs *readings) begin(repo ref.Repository, d digest.Digest, size int64) (r *reading, end func()) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.open == nil {
		rs.open = make(map[readingKey]*reading)
	}
	k := readingKey{repo, d}
	if r = rs.open[k]; r == nil {
		r = &reading{size: size}
		rs.open[k] = r
	}
	r.clients++
	return r, sync.OnceFunc(func() {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		r.clients--
		r.ended = time.Now()
		rs.forgetEnded()
	})
}

// forgetEnded forgets what nobody has read for a while; rs.mu is held.
func (rs *readings) forgetEnded() {
	now := time.Now()
	for k, r := range rs.open {
		if r.clients == 0 && (now.Sub(r.ended) > lingers || len(rs.open) > maxLinger) {
			delete(rs.open, k)
		}
	}
}

// from returns what is told of bytes that are sent from an offset on.
func (r *reading) from(off int64) func(n int64) {
	if r == nil {
		return func(int64) {}
	}
	return func(n int64) {
		off += n
		for at := r.furthest.Load(); off > at && !r.furthest.CompareAndSwap(at, off); at = r.furthest.Load() {
		}
	}
}

// UnderWay returns the images of which blobs are being read now, in order of their names, at
// most 128 of them.
func (r *Registry) UnderWay(ctx context.Context) []ImageUnderWay {
	open, recent := r.reads.now()
	images := make(map[string]*ImageUnderWay)
	for k := range open {
		a, refs := r.namedBy(ctx, recent, k)
		name := r.rootOf(ctx, recent, a).name()
		if a.manifest == "" {
			name = k.String() + ": " + unnamed
		}
		i := images[name+string(a.manifest)]
		if i == nil {
			i = &ImageUnderWay{Ref: name, Digest: a.manifest, Layers: []LayerUnderWay{}}
			images[name+string(a.manifest)] = i
			for _, l := range refs {
				if l.role == graph.Layer || l.role == graph.Config {
					i.add(r.layerUnderWay(open, k.Repository, l.digest, l.mediaType, l.size))
				}
			}
		}
		i.add(r.layerUnderWay(open, k.Repository, k.blob, "", open[k].size)) // if it is no layer, but nested, say
	}
	all := make([]ImageUnderWay, 0, len(images))
	for _, i := range images {
		slices.SortFunc(i.Layers, func(a, b LayerUnderWay) int { return cmp.Compare(b.Size, a.Size) })
		all = append(all, *i)
	}
	slices.SortFunc(all, func(a, b ImageUnderWay) int {
		return cmp.Or(cmp.Compare(a.Ref, b.Ref), cmp.Compare(a.Digest, b.Digest))
	})
	return all[:min(len(all), maxShown)]
}

func (i *ImageUnderWay) add(l LayerUnderWay) {
	if slices.ContainsFunc(i.Layers, func(o LayerUnderWay) bool { return o.Digest == l.Digest }) {
		return
	}
	i.Layers = append(i.Layers, l)
	i.Size, i.Here, i.Clients = i.Size+l.Size, i.Here+l.Here, i.Clients+l.Clients
}

// seen is a reading as it is at a moment.
type seen struct {
	size, furthest int64
	clients        int
}

// of returns the manifests of a repository that were asked for lately, the latest last.
func (rs *readings) of(repo ref.Repository) (recent []asked) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, a := range rs.recent {
		if a.Repository == repo {
			recent = append(recent, a)
		}
	}
	return recent
}

func (rs *readings) now() (map[readingKey]seen, []asked) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.forgetEnded()
	open := make(map[readingKey]seen, len(rs.open))
	for k, r := range rs.open {
		open[k] = seen{r.size, r.furthest.Load(), r.clients}
	}
	return open, slices.Clone(rs.recent)
}

func (r *Registry) layerUnderWay(open map[readingKey]seen, repository ref.Repository, d digest.Digest, mediaType string, size int64) LayerUnderWay {
	s := open[readingKey{repository, d}]
	l := LayerUnderWay{Digest: d, MediaType: mediaType, Size: size, Here: s.furthest, Clients: s.clients}
	if info, err := r.cfg.Store.Stat(d); err == nil {
		l.Here = max(l.Here, info.Stored)
	}
	l.Here = min(l.Here, size)
	return l
}

// namedBy returns the manifest that names a blob, of those that were asked for the latest, with
// what it refers to.
func (r *Registry) namedBy(ctx context.Context, recent []asked, k readingKey) (asked, []member) {
	for _, a := range slices.Backward(recent) {
		if a.Repository != k.Repository {
			continue
		}
		refs := r.refsOf(ctx, a.manifest)
		if find(refs, k.blob) >= 0 {
			return a, refs
		}
	}
	return asked{}, nil
}

// rootOf returns what somebody asked for who came to a manifest: the index that names it, if it has no tag itself.
func (r *Registry) rootOf(ctx context.Context, recent []asked, a asked) asked {
	for nested := 0; a.tag == "" && nested < maxNested; nested++ {
		i := len(recent) - 1
		for ; i >= 0 && !(recent[i].Repository == a.Repository && r.leadsTo(ctx, recent[i].manifest, a.manifest)); i-- {
		}
		if i < 0 {
			break
		}
		a = recent[i]
	}
	return a
}

// leadsTo reports whether a manifest consists of another: it does not of one that it is only about.
func (r *Registry) leadsTo(ctx context.Context, index, d digest.Digest) bool {
	refs := r.refsOf(ctx, index)
	i := find(refs, d)
	return i >= 0 && refs[i].role != graph.Subject
}

// name is what people call a manifest: by its tag, if it has one.
func (a asked) name() string {
	named := ref.Reference{Repository: a.Repository, Tag: a.tag}
	if a.tag == "" {
		named.Digest = a.manifest
	}
	return named.String()
}

// refsOf returns what a stored manifest refers to. What is not stored, or is no manifest, refers
// to nothing that is known.
func (r *Registry) refsOf(ctx context.Context, d digest.Digest) []member {
	if refs, known := r.reads.refs(d); known {
		return refs
	}
	info, err := r.cfg.Store.Stat(d)
	if err != nil || info.Stored != info.Size || info.Size > upstream.MaxManifestSize {
		return nil
	}
	raw, err := r.stored(ctx, d, info.Size)
	if err != nil {
		return nil
	}
	return r.reads.learn(d, raw)
}

// refs returns what is remembered of a manifest.
func (rs *readings) refs(d digest.Digest) (all []member, known bool) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	all, known = rs.parsed[d]
	return all, known
}

// find returns where a digest is among references, or -1.
func find(refs []member, d digest.Digest) int {
	for i := range refs {
		if refs[i].digest == d {
			return i
		}
	}
	return -1
}

// learn returns what a manifest refers to, and remembers it.
func (rs *readings) learn(d digest.Digest, raw []byte) (refs []member) {
	all, _ := graph.References(raw) // one with too many was not served
	for _, l := range all {
		if !l.Malformed {
			refs = append(refs, member{l.Digest, l.MediaType, l.Size, l.Role})
		}
	}
	if len(refs) > maxRefsOf {
		return refs
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.parsed == nil || rs.members+len(refs) >= maxMembers {
		rs.parsed, rs.members = make(map[digest.Digest][]member), 0
	}
	rs.parsed[d] = refs
	rs.members += 1 + len(refs)
	return refs
}
