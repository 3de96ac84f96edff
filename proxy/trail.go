package proxy

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/leads"
	"github.com/granary-oci/granary/toc"
)

const (
	// maxTrail is how many files are followed for a mount, at the most, and trailAtOnce
	// how many are looked into at a time.
	maxTrail    = 1 << 13
	trailAtOnce = 32
	// leadGap is how far apart in a layer, in bytes, files may be that others lead to, to
	// be fetched with one request.
	leadGap = 8 << 10
	// wholeLead is the size of the largest file, in bytes, that is fetched as a whole when
	// another leads to it. Of larger ones it is what says where they lead to.
	wholeLead = 1 << 20
	// largestLead bounds an extent of a file that is followed, in bytes, as it is stored and
	// as it is.
	largestLead = 8 << 20
	// maxTrailTree is how many names an image may have, to be followed through.
	maxTrailTree = 1 << 19
	// maxPlace is how far files lead from one that a program has read, in bytes of their
	// places, two for each step.
	maxPlace = 256
)

// trail is what the files that a mount reads lead to, and what these do.
type trail struct {
	ctx    context.Context
	m      *Mount
	tree   *toc.Tree
	layers []*Layer // of the tree, with the trail's context
	finder *leads.Finder
	known  func(fileRef) bool // it is fetched anyway
	slots  chan struct{}
	count  atomic.Int32 // files that a program has read, and none has led to

	mu   sync.Mutex
	been map[uint64]*order // files that were followed, by inode
}

// newTrail returns the trail of an image that m has mounted, of which files that are known
// are not followed. It lasts for as long as ctx lives, and is nil if the image is too large
// for it, or nothing of it is known.
func newTrail(ctx context.Context, m *Mount, layers []*Layer, known func(fileRef) bool) (*trail, error) {
	names := 0
	var all []*toc.Layer
	for i, l := range layers {
		names += l.Len()
		layers[i] = l.on(ctx)
		all = append(all, layers[i].Layer.Layer)
	}
	if len(layers) == 0 || names > maxTrailTree {
		return nil, nil
	}
	tree, err := toc.Overlay(all)
	if err != nil {
		return nil, err
	}
	return &trail{
		ctx: ctx, m: m, tree: tree, layers: layers, finder: leads.New(tree), known: known,
		slots: make(chan struct{}, trailAtOnce), been: make(map[uint64]*order),
	}, nil
}

// trails is a mount's trail, while it has one: files that are read before that are
// followed then. The zero value is that of a mount that will have one.
type trails struct {
	now atomic.Pointer[trail]

	mu    sync.Mutex
	over  bool      // there will be none any more
	early []fileRef // files that were read before there was one
}

// begin is told of the mount's trail.
func (t *trails) begin(is *trail) {
	t.mu.Lock()
	if t.over || is == nil {
		t.mu.Unlock()
		return
	}
	t.now.Store(is)
	early := t.early
	t.early = nil
	t.mu.Unlock()
	for _, ref := range early {
		is.read(ref)
	}
}

// end ends the trail: what it needs of the image's tables takes memory.
func (t *trails) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over, t.early = true, nil
	t.now.Store(nil)
}

// read takes note that somebody reads a file.
func (t *trails) read(ref fileRef) {
	is := t.now.Load()
	if is == nil {
		t.mu.Lock()
		if is = t.now.Load(); is == nil && !t.over && len(t.early) < maxTrail {
			t.early = append(t.early, ref)
		}
		t.mu.Unlock()
	}
	if is != nil {
		is.read(ref)
	}
}

// has reports whether others have led to a file.
func (t *trails) has(ref fileRef) bool {
	is := t.now.Load()
	return is != nil && is.has(ref)
}

// start follows what is read of an image first, as its configuration says how it is run.
func (t *trail) start(config ocispec.ImageConfig) {
	t.lead(t.finder.Start(config), place("", math.MaxUint16))
}

// read follows where a file leads that somebody reads. That comes before what files lead
// to that were read earlier.
func (t *trail) read(ref fileRef) {
	file, ok := t.file(ref)
	if !ok || t.known(ref) || t.has(ref) {
		return
	}
	if o, first := t.visit(&file, place("", math.MaxUint16-int(t.count.Load())-1)); first {
		t.count.Add(1)
		t.follow(step{file, o})
	}
}

// file returns a file as the tree has it, if it does.
func (t *trail) file(ref fileRef) (file toc.File, ok bool) {
	file, ok = t.tree.Lookup(ref.path)
	return file, ok && file.Source == ref.path && t.layer(&file).blob.Digest() == ref.layer
}

// has reports whether others have led to a file.
func (t *trail) has(ref fileRef) bool {
	file, ok := t.file(ref)
	t.mu.Lock()
	defer t.mu.Unlock()
	return ok && t.been[file.Inode] != nil
}

// place returns the place of what is the ith that something at a place leads to.
func place(of string, i int) string {
	return string(binary.BigEndian.AppendUint16([]byte(of), uint16(i)))
}

// visit returns when a file is to be fetched, and whether nothing has led to it yet. If it
// has, what leads to it now may make it sooner.
func (t *trail) visit(file *toc.File, at string) (o *order, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.been[file.Inode]; o != nil || len(t.been) >= maxTrail || len(at) > maxPlace {
		if o != nil {
			t.m.p.registry.turns.sooner(o, at)
		}
		return o, false
	}
	o = &order{at: at}
	t.been[file.Inode] = o
	return o, true
}

func (t *trail) layer(file *toc.File) *Layer {
	return t.layers[slices.IndexFunc(t.layers, func(l *Layer) bool { return l.Layer.Layer == file.Layer })]
}

// step is a file that others lead to, and when its turn is: a program reads what a file
// leads to first, and what that leads to, before it reads what the file leads to next.
type step struct {
	toc.File
	*order
}

// follow finds out where a file leads, fetches that, and goes on from there.
func (t *trail) follow(from step) {
	t.do(func() {
		l := t.layer(&from.File)
		e, ok := l.Lookup(from.Source)
		if !ok {
			return
		}
		ctx := withOrder(l.bytes.context(), from.order)
		if from.Size <= wholeLead {
			ctx = withTravel(ctx, new(travel)) // it is here, and was counted
		}
		content := l.on(ctx).Content(&e)
		found := t.finder.From(&from.File, content)
		t.lead(found, t.m.p.registry.turns.placeOf(from.order))
	})
}

// dear reports whether more would have to be fetched, or inflated, of a file than a guess
// is worth: an extent that has a digest is read as a whole.
func dear(f *toc.File) bool {
	return slices.ContainsFunc(f.Extents, func(x toc.Extent) bool {
		return x.Digest.Known() && x.Size > largestLead || x.End-x.Start > largestLead
	})
}

// lead fetches what something at a place leads to, and follows it.
func (t *trail) lead(found []toc.File, at string) {
	var steps []step
	parts := make(map[*Layer][]part)
	for i, to := range found {
		o, first := t.visit(&to, place(at, i))
		switch l := t.layer(&to); {
		case !first || dear(&to):
		case to.Size > wholeLead:
			t.follow(step{to, o})
		default:
			if e, ok := l.Lookup(to.Source); ok {
				parts[l] = append(parts[l], partsOfAll(e, len(steps))...)
				steps = append(steps, step{to, o})
			}
		}
	}
	for l, all := range parts {
		for _, run := range l.runs(all, leadGap) {
			t.fetch(run, steps)
		}
	}
}

// fetch fetches files, of which the rank is the position in steps, and follows them then.
func (t *trail) fetch(run *aheadRun, steps []step) {
	t.m.start(func() {
		run.layer = run.layer.on(withOrder(run.layer.bytes.context(), steps[run.rank].order))
		if err := run.fetch(); err != nil {
			t.m.note(err)
			return
		}
		for _, p := range run.parts {
			if p.off == 0 {
				t.follow(steps[p.rank])
			}
		}
	})
}

// do does something beside, once not too much else is done so.
func (t *trail) do(it func()) {
	t.m.start(func() {
		select {
		case t.slots <- struct{}{}:
			defer func() { <-t.slots }()
			it()
		case <-t.ctx.Done():
		}
	})
}
