package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/proxy/profile"
	"github.com/granary-oci/granary/toc"
)

// Mount is an image that somebody reads as a file system, for as long as they do: what
// the node fetches for them ahead of what they ask for, and what they have read. It is
// safe for concurrent use.
type Mount struct {
	about      MountRequest
	p          *Repository // as whoever has mounted it reads it
	image      digest.Digest
	of         Image
	layers     []ocispec.Descriptor
	configured ocispec.Descriptor // the image's configuration; "" is none
	started    time.Time
	ctx        context.Context // ends with the mount

	starting sync.Mutex
	ended    bool           // nothing is added to work any more; starting guards it
	work     sync.WaitGroup // what is done beside, until ctx ends

	recorder profile.Recorder
	trails   trails
	read     atomic.Int64 // bytes of files that were asked for
	demanded travel
	ahead    travel
	rest     atomic.Pointer[string] // what has become of the rest; nil before it is fetched
	begun    sync.Once              // the fetching of the rest

	mu      sync.Mutex
	saved   int64               // what read was when the run was put into the image's profile
	streams map[fileRef]*onward // files that are read from one end on
}

// MountRequest says what is mounted, where, and by whom.
type MountRequest struct {
	ID       string // chosen by who mounts, who alone knows it; 1 to 64 bytes
	Ref      string // the image, as it was named
	Dir      string
	Prefetch bool // what earlier runs have read is fetched ahead
	Kernel   bool // layers that are file systems are mounted by the kernel: nobody needs their tables
	// Layer is the one layer that is mounted, without an image; or "".
	Layer digest.Digest
	// Image is the digest of the image's manifest, if there is one.
	Image digest.Digest
}

// MountStatus is what is known of a mount.
type MountStatus struct {
	Image   string    `json:"image"` // HOST/NAME@DIGEST
	Ref     string    `json:"ref"`
	Dir     string    `json:"dir"`
	Started time.Time `json:"started"`
	Files   int       `json:"files"` // that were read
	Read    int64     `json:"read"`  // bytes of files that were asked for
	// Demanded is what came for that, and Ahead what was fetched before it was asked for.
	Demanded Travelled `json:"demanded"`
	Ahead    Travelled `json:"ahead"`
	// Rest says what has become of the rest of the image: "" if nothing is to, else
	// "fetching", "complete", or what went wrong.
	Rest string `json:"rest,omitempty"`
}

// Limits of mounts.
const (
	maxMounts    = 1024
	maxMountText = 4096 // bytes of a directory or a reference
	// recordFor is for how long the files are recorded that a run reads: what it takes to
	// start, and not what comes with the work.
	recordFor = 10 * time.Minute
	// saveEvery is how often they are saved.
	saveEvery = 10 * time.Second
)

var errNoMount = fmt.Errorf("%w: there is none of that name", chunk.ErrNotFound)

// errMounts says that there are too many mounts, or one with that name.
var errMounts = errors.New("there are too many mounts, or one of that name")

// Mount begins a mount. It ends with ctx, and is to be ended then.
func (p *Repository) Mount(ctx context.Context, q MountRequest) (*Mount, error) {
	m := &Mount{about: q, p: p, image: q.Image, started: time.Now(), ctx: ctx}
	if q.Layer != "" {
		size, err := p.Stat(ctx, q.Layer)
		if err != nil {
			return nil, err
		}
		m.image, m.layers = q.Layer, []ocispec.Descriptor{{Digest: q.Layer, Size: size}}
		m.of = p.image(ctx, q.Layer)
	} else {
		image, err := p.imageManifest(ctx, q.Image)
		if err != nil {
			return nil, err
		}
		m.layers, m.configured = image.Layers, image.Config
		m.of = p.imageOf(ctx, q.Image)
	}
	if !p.registry.mounts.add(q.ID, m) {
		return nil, errMounts
	}
	if q.Prefetch {
		m.start(func() { m.fetchExpected() })
	}
	m.start(m.saveNowAndThen)
	return m, nil
}

// start does something that ends with the mount.
func (m *Mount) start(do func()) {
	m.starting.Lock()
	defer m.starting.Unlock()
	if m.ended || m.ctx.Err() != nil {
		return
	}
	m.work.Add(1)
	go func() { defer m.work.Done(); do() }()
}

// End ends a mount, whose context has.
//
// What the run has read is saved first: who is told that the mount is over may begin the
// next one.
func (m *Mount) End() {
	m.save()
	m.p.registry.mounts.remove(m.about.ID)
	m.starting.Lock()
	m.ended = true
	m.starting.Unlock()
	m.work.Wait()
}

// Status returns what is known of the mount.
func (m *Mount) Status() MountStatus {
	s := MountStatus{
		Image: m.p.String() + "@" + string(m.image), Ref: m.about.Ref, Dir: m.about.Dir, Started: m.started,
		Files: m.recorder.Len(), Read: m.read.Load(), Demanded: m.demanded.sum(), Ahead: m.ahead.sum(),
	}
	if rest := m.rest.Load(); rest != nil {
		s.Rest = *rest
	}
	return s
}

// has reports whether a layer is one of those that are mounted.
func (m *Mount) has(layer digest.Digest) bool {
	return slices.ContainsFunc(m.layers, func(l ocispec.Descriptor) bool { return l.Digest == layer })
}

// manifest returns the manifest whose word on layers holds, if there is one.
func (m *Mount) manifest() digest.Digest {
	if m.about.Layer != "" {
		return ""
	}
	return m.image
}

// reading takes note that somebody is about to read size bytes at off of a file of a
// layer, and fetches what is behind if they read on.
func (m *Mount) reading(l *Layer, e *toc.Entry, off, size int64) {
	m.read.Add(size)
	layer := l.blob.Digest()
	if time.Since(m.started) < recordFor {
		m.recorder.Read(layer, e.Name, off, size, l.placesOf(e, off, size)...)
	}
	m.readOn(fileRef{layer, e.Name}, off, size, e.Size)
}

// A layer that the kernel has mounted is read as it is, and what files that is of is not
// known here: each MiB of it is recorded as a file of a name that no file has.
const (
	rawLayer  = "./"
	rawRegion = 1 << 20
)

// readingLayer takes note that somebody is about to read size bytes at off of a layer.
func (m *Mount) readingLayer(layer digest.Digest, off, size int64) {
	m.read.Add(size)
	if time.Since(m.started) >= recordFor {
		return
	}
	for end := off + size; off < end; {
		region := off / rawRegion
		next := min((region+1)*rawRegion, end)
		m.recorder.Read(layer, rawLayer+strconv.FormatInt(region, 10), off, next-off)
		off = next
	}
}

// opened takes note that somebody reads a file by themselves, nobody knows which parts of
// it: all of it if it is small, or if it was fetched because others have led to it.
func (m *Mount) opened(l *Layer, e *toc.Entry) {
	layer := l.blob.Digest()
	switch {
	case time.Since(m.started) >= recordFor:
	case e.Size <= wholeLead || m.trails.has(fileRef{layer, e.Name}):
		m.recorder.Read(layer, e.Name, 0, e.Size, l.placesOf(e, 0, e.Size)...)
	default:
		m.recorder.Opened(layer, e.Name)
	}
}

// hasRead takes note that somebody has what they wanted of a file, or at least the
// beginning of it, and fetches what the file leads to.
func (m *Mount) hasRead(layer digest.Digest, e *toc.Entry) {
	if m.about.Prefetch {
		m.trails.read(fileRef{layer, e.Name})
	}
}

// placesOf returns where the contents are that a part of a file is read from, if they
// are by themselves in the layer, and checked by themselves.
func (l *Layer) placesOf(e *toc.Entry, off, size int64) (all []profile.Place) {
	if l.Map != nil {
		return nil // they are those in its tar
	}
	for _, x := range e.Extents {
		if x.Offset >= off+size || off >= x.Offset+x.Size {
			continue
		}
		if x.Inner != 0 || !x.Digest.Known() || x.End <= x.Start {
			return nil
		}
		all = append(all, profile.Place{Range: profile.Range{Offset: x.Start, Size: x.End - x.Start}, Digest: x.Digest[:], Content: x.Size})
	}
	return all
}

// File returns a regular file of a layer that a mount is about to open by itself, and
// takes note of that. It is false if there is no such mount, or nobody reads the file's
// content there: all of it, or its extents, has to have been read from a layer that may be read by
// who has mounted the image.
func (r *Registry) File(id string, layer digest.Digest, path string) (e toc.Entry, ok bool) {
	m := r.mounts.find(id)
	if m == nil || !m.has(layer) {
		return e, false
	}
	ctx, cancel := context.WithTimeout(m.ctx, openFor)
	defer cancel()
	l, err := m.p.Layer(ctx, layer, m.manifest())
	if err != nil {
		return e, false
	}
	defer l.Release()
	e, err = fileNamed(l, toc.Clean(path))
	if err != nil || l.files == nil || !e.Digest.Known() {
		return e, false
	}
	may := func(x toc.Extent) bool { return x.Digest.Known() && l.files.May(x.Digest) }
	if !l.files.May(e.Digest) && (len(e.Extents) == 0 || slices.ContainsFunc(e.Extents, func(x toc.Extent) bool { return !may(x) })) {
		return e, false
	}
	m.opened(l, &e)
	m.hasRead(layer, &e)
	return e, true
}

// openFor bounds the search for a file that is to be opened.
const openFor = 5 * time.Second

// saveNowAndThen saves what the run reads, for it may never end.
func (m *Mount) saveNowAndThen() {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for time.Since(m.started) < recordFor+saveEvery {
		select {
		case <-tick.C:
			m.save()
		case <-m.ctx.Done():
			return
		}
	}
}

// save adds the run to the image's profile, and tells others.
func (m *Mount) save() {
	m.mu.Lock()
	defer m.mu.Unlock()
	read, files := m.read.Load(), m.recorder.Files()
	if read == m.saved || len(files) == 0 {
		return
	}
	r := m.p.registry
	packed, err := r.addRun(m.image, files, m.saved > 0)
	if err != nil {
		r.report(err)
		return
	}
	m.saved = read
	if peers := m.p.peers(); peers != nil && !peers.Alone() {
		in := m.p.in(m.p.caller)
		peers.Tell(in, encode(Facts{Profiles: map[digest.Digest][]byte{m.image: packed}, Itself: in.Itself}))
	}
}

// addRun adds a run to an image's profile, and returns that.
func (r *Registry) addRun(image digest.Digest, files []profile.File, again bool) ([]byte, error) {
	r.profiling.Lock()
	defer r.profiling.Unlock()
	known, _ := profile.Decode(r.KeptProfile(context.Background(), image)) // else it is the first
	packed, err := known.Add(files, again).Encode()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", image, err)
	}
	r.cfg.Layers.SetDerived(context.Background(), lazy.KindProfile, image, packed)
	return packed, nil
}

// KeptProfile returns the access profile of an image that is kept here, or nil.
func (r *Registry) KeptProfile(ctx context.Context, image digest.Digest) []byte {
	p, err := r.cfg.Layers.Derived(ctx, lazy.KindProfile, image)
	if err != nil || len(p) > profile.MaxSize {
		return nil
	}
	return p
}

// learnProfile keeps a profile that another member has made, if it is of as many runs
// as the one that is known.
func (r *Registry) learnProfile(image digest.Digest, packed []byte) error {
	told, err := profile.Decode(packed)
	if err != nil {
		return err
	}
	if err := image.Validate(); err != nil {
		return fmt.Errorf("profile of %q: %w", string(image), err)
	}
	r.profiling.Lock()
	defer r.profiling.Unlock()
	if known, err := profile.Decode(r.KeptProfile(context.Background(), image)); err == nil && known.Runs > told.Runs {
		return nil
	}
	r.cfg.Layers.SetDerived(context.Background(), lazy.KindProfile, image, packed)
	return nil
}

// profile returns the image's profile, as it is known here or to others.
func (m *Mount) profile(ctx context.Context) profile.Profile {
	if known, err := profile.Decode(m.p.registry.KeptProfile(ctx, m.image)); err == nil {
		return known
	}
	peers := m.p.peers()
	if peers == nil || peers.Alone() {
		return profile.Profile{}
	}
	var best profile.Profile
	peers.Profiles(ctx, m.p.in(m.p.caller), m.image, func(packed []byte) {
		told, err := profile.Decode(packed)
		if err != nil {
			m.p.registry.report(fmt.Errorf("image %s: another member's %w", m.image, err))
			return
		}
		if told.Runs > best.Runs {
			best = told
			m.p.registry.report(m.p.registry.learnProfile(m.image, packed))
		}
	})
	return best
}

// imageManifest returns the manifest of an image.
func (p *Repository) imageManifest(ctx context.Context, d digest.Digest) (image ocispec.Manifest, err error) {
	if _, err := p.resolveDigest(ctx, d); err != nil {
		return image, err
	}
	m, err := p.Manifest(ctx, d)
	if err != nil {
		return image, err
	}
	if err := p.registry.parsing.Acquire(ctx, 1); err != nil {
		return image, err
	}
	defer p.registry.parsing.Release(1)
	if err := json.Unmarshal(m.Bytes, &image); err != nil {
		return image, fmt.Errorf("%s@%s: %w", p, d, err)
	}
	p.registry.wasTold(p.Repository, "", d, m.Bytes) // by whoever answered this caller, which may have been another process
	return image, nil
}

// Mounts returns the status of all mounts.
func (r *Registry) Mounts() (all []MountStatus) {
	for _, m := range r.mounts.list() {
		all = append(all, m.Status())
	}
	return all
}

// EndMounts ends the answers by which mounts are known, for the node is about to stop.
// Who has them finds them again at the next one.
func (r *Registry) EndMounts() { r.mounts.end() }

// mounts are those that there are, by their IDs. The zero value is ready to use.
type mounts struct {
	mu    sync.Mutex
	all   map[string]*Mount
	over  chan struct{} // closed when they are to end; nil before anybody waits for that
	ended bool
}

func (l *mounts) add(id string, m *Mount) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = make(map[string]*Mount)
	}
	if l.all[id] != nil || len(l.all) >= maxMounts || l.ended {
		return false
	}
	l.all[id] = m
	return true
}

func (l *mounts) remove(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, id)
}

func (l *mounts) find(id string) *Mount {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[id]
}

func (l *mounts) list() (all []*Mount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.all {
		all = append(all, m)
	}
	return all
}

// done is closed when mounts are to end.
func (l *mounts) done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over == nil {
		l.over = make(chan struct{})
		if l.ended {
			close(l.over)
		}
	}
	return l.over
}

func (l *mounts) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended && l.over != nil {
		close(l.over)
	}
	l.ended = true
}
