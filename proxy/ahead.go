package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/profile"
	"github.com/granary-oci/granary/toc"
)

const (
	// runGap is how far apart in a layer, in bytes, what is fetched ahead may be, to be
	// fetched with one request; runSize is how much one such request gets.
	runGap  = 16 << 10
	runSize = 512 << 10
	// aheadAtOnce is how many of these are under way, and sharedAtOnce how many files
	// other members are asked for.
	aheadAtOnce  = 8
	sharedAtOnce = 32
)

// fetchExpected fetches what the image's profile says, or else what its layers say is
// read first, and from then on, for as long as a program takes to start, what files that
// are read lead to.
func (m *Mount) fetchExpected() {
	ctx := withUrgency(withTravel(m.ctx, &m.ahead), expected)
	likely := m.profile(ctx).Likely()
	m.start(func() { m.fetchPlaces(ctx, likely) })
	byLayer := make(map[digest.Digest][]profile.File)
	position := make(map[fileRef]int)
	for i, f := range likely {
		byLayer[f.Layer] = append(byLayer[f.Layer], f)
		position[fileRef{f.Layer, f.Path}] = i
	}
	layers := m.open(ctx)
	over := m.beginTrail(ctx, layers, func(f fileRef) bool { _, ok := position[f]; return ok }, len(position) == 0)
	defer func() {
		<-over
		for _, l := range layers {
			l.Release()
		}
	}()
	var all []*aheadRun
	for _, l := range layers {
		d := l.blob.Digest()
		var parts []part
		switch {
		case len(position) > 0:
			parts = l.partsOf(byLayer[d], func(path string) int { return position[fileRef{d, path}] })
		case l.Prefetch > 0:
			parts = l.firstParts(l.Prefetch)
		}
		all = append(all, l.runs(parts, runGap)...)
	}
	slices.SortStableFunc(all, func(a, b *aheadRun) int { return cmp.Compare(a.rank, b.rank) })
	m.fetchRuns(all)
}

// beginTrail begins to follow what is read, but for files that are known, until over is
// closed: for as long as a program takes to start. first says that nothing is known of how.
func (m *Mount) beginTrail(ctx context.Context, layers []*Layer, known func(fileRef) bool, first bool) (over <-chan struct{}) {
	ctx, end := context.WithCancel(ctx)
	timer := time.AfterFunc(recordFor, end)
	context.AfterFunc(ctx, func() { timer.Stop(); end(); m.trails.end() })
	t, err := newTrail(ctx, m, slices.Clone(layers), known)
	m.note(err)
	m.trails.begin(t)
	if t != nil && first {
		m.start(func() { t.start(m.config(ctx)) })
	}
	return ctx.Done()
}

// open opens the image's layers, which are to be released. What is in others is expected all
// the same if one cannot be opened.
func (m *Mount) open(ctx context.Context) []*Layer {
	opened := make([]*Layer, len(m.layers))
	var g errgroup.Group
	for i, desc := range m.layers {
		if f := toc.Announced(desc); m.about.Kernel && (f == toc.EROFS || f == toc.Squashfs) {
			continue
		}
		g.Go(func() error {
			l, err := m.p.Layer(ctx, desc.Digest, m.manifest())
			if err != nil {
				m.note(err)
				return nil
			}
			opened[i] = l
			return nil
		})
	}
	_ = g.Wait() // errors are noted
	return slices.DeleteFunc(opened, func(l *Layer) bool { return l == nil })
}

// maxConfig bounds an image's configuration, in bytes.
const maxConfig = 4 << 20

// config returns what the image's configuration says of how it is run, if it has one.
func (m *Mount) config(ctx context.Context) (run ocispec.ImageConfig) {
	if m.configured.Digest == "" || m.configured.Size > maxConfig {
		return run
	}
	b, err := m.p.Blob(ctx, m.configured.Digest)
	if err != nil {
		m.note(err)
		return run
	}
	defer b.Release()
	r := b.Open(ctx)
	defer r.Close()
	var config ocispec.Image
	if err := json.NewDecoder(io.LimitReader(r, maxConfig)).Decode(&config); err != nil {
		return run // of a kind that is no image's
	}
	return config.Config
}

// fetchPlaces begins to fetch what is expected while the tables are still on their way
// that say what it is, unless others are to be asked for it: up to what is kept in memory
// of it. What is read of layers as they are needs no table.
func (m *Mount) fetchPlaces(ctx context.Context, likely []profile.File) {
	peers := m.p.peers()
	alone := peers == nil || peers.Alone()
	raw, contents := make(map[digest.Digest][]part), make(map[digest.Digest][]part)
	left := int64(keptPieces / 4 * 3)
	for i, f := range likely {
		add := func(to map[digest.Digest][]part, at profile.Range) {
			if left -= at.Size; left > 0 {
				to[f.Layer] = append(to[f.Layer], part{start: at.Offset, end: at.Offset + at.Size, rank: i})
			}
		}
		if strings.HasPrefix(f.Path, rawLayer) {
			for _, at := range f.Ranges {
				add(raw, at)
			}
			continue
		}
		for _, at := range f.Places {
			if alone && !m.p.registry.hasContent(at) {
				add(contents, at.Range)
			}
		}
	}
	var g errgroup.Group
	for _, l := range m.layers {
		if m.p.unpacks(chunkstore.Whole{Digest: l.Digest, Size: l.Size}) {
			continue // what is where in its bytes does not matter
		}
		for isContents, parts := range map[bool][]part{false: raw[l.Digest], true: contents[l.Digest]} {
			if len(parts) > 0 {
				g.Go(func() error { m.note(m.p.fetchPlacesOf(ctx, l.Digest, parts, isContents)); return nil })
			}
		}
	}
	_ = g.Wait() // errors are noted
}

// hasContent reports whether a content is kept, whoever may read it.
func (r *Registry) hasContent(p profile.Place) bool {
	return r.cfg.Contents != nil && r.cfg.Contents.Has(toc.Digest(p.Digest), p.Content)
}

// fetchPlacesOf fetches bytes of a layer, which are read later: those of contents when
// somebody has the table.
func (p *Repository) fetchPlacesOf(ctx context.Context, d digest.Digest, parts []part, contents bool) error {
	b, err := p.Blob(ctx, d)
	if err != nil {
		return err
	}
	defer b.Release()
	for _, run := range runsOf(parts, false, runGap) {
		r := &pieces{repository: p, blob: b, ctx: withOrder(ctx, run.order()), contents: contents}
		start, end := run.start(), min(run.end(), b.Size())
		if start >= end || r.apart() {
			r.Expect(start, end)
		} else if _, err := r.readChunks(make([]byte, end-start), start); err != nil {
			return err
		}
	}
	return nil
}

// note reports what went wrong with what nobody waits for. That a layer is for the kernel
// alone has not, nor has what is over.
func (m *Mount) note(err error) {
	if m.ctx.Err() == nil && !errors.Is(err, toc.ErrUnsupported) && !errors.Is(err, context.Canceled) {
		m.p.registry.report(err)
	}
}

// part is a part of a file that is expected to be read: an extent that is checked as a
// whole, or some bytes of another one.
type part struct {
	entry      toc.Entry
	off, size  int64 // in the file
	start, end int64 // in the layer
	inner      int64 // in what inflates from start
	rank       int   // the smaller, the sooner
}

// partsOf returns the parts of files that a profile names. What the layer does not have
// is passed over.
func (l *Layer) partsOf(files []profile.File, rank func(path string) int) (parts []part) {
	for _, f := range files {
		e, ok := l.Lookup(f.Path)
		if !ok || e.Type != toc.Regular {
			continue
		}
		for _, x := range e.Extents {
			for _, r := range f.Ranges {
				off, end := max(x.Offset, r.Offset), min(x.Offset+x.Size, r.Offset+r.Size)
				if off >= end {
					continue
				}
				p := partOf(&e, x, rank(f.Path))
				p.off, p.size = off, end-off
				parts = append(parts, p)
				if x.Digest.Known() {
					break // all of it is fetched
				}
			}
		}
	}
	return parts
}

// firstParts returns all files of which the layer has the content before byte end.
func (l *Layer) firstParts(end int64) (parts []part) {
	for e := range l.All() {
		for _, x := range e.Extents {
			if x.Start < end && x.End <= end {
				parts = append(parts, partOf(&e, x, int(x.Start>>20)))
			}
		}
	}
	return parts
}

// partsOfAll returns all parts of a file.
func partsOfAll(e toc.Entry, rank int) (parts []part) {
	for _, x := range e.Extents {
		parts = append(parts, partOf(&e, x, rank))
	}
	return parts
}

// partOf returns an extent of a file as a part.
func partOf(e *toc.Entry, x toc.Extent, rank int) part {
	return part{entry: *e, off: x.Offset, size: x.Size, start: x.Start, end: x.End, inner: x.Inner, rank: rank}
}

// aheadRun are parts that are near each other in a layer.
type aheadRun struct {
	layer *Layer
	parts []part
	rank  int
}

func (r *aheadRun) start() int64 { return r.parts[0].start }
func (r *aheadRun) end() int64   { return r.parts[len(r.parts)-1].end }

// order returns when a run of a profile has its turn.
func (r *aheadRun) order() *order { return &order{at: place("", r.rank)} }

// runs puts parts of a layer together that can be fetched with one request, being up to
// gap bytes apart. Where other members are asked for files, each is by itself.
func (l *Layer) runs(parts []part, gap int64) []*aheadRun {
	all := runsOf(parts, l.shared(), gap)
	for _, r := range all {
		r.layer = l
	}
	return all
}

// runsOf puts parts together, unless they are to be apart, and returns the sooner ones
// first.
func runsOf(parts []part, apart bool, gap int64) (runs []*aheadRun) {
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.inner, b.inner)) })
	for _, p := range parts {
		var last *aheadRun
		if n := len(runs); n > 0 {
			last = runs[n-1]
		}
		if last == nil || apart || p.start > last.end()+gap || p.end-last.start() > runSize {
			last = &aheadRun{rank: p.rank}
			runs = append(runs, last)
		}
		last.parts = append(last.parts, p)
		last.rank = min(last.rank, p.rank)
	}
	slices.SortStableFunc(runs, func(a, b *aheadRun) int { return cmp.Compare(a.rank, b.rank) })
	return runs
}

// fetchRuns fetches runs, several at a time.
func (m *Mount) fetchRuns(all []*aheadRun) {
	var g errgroup.Group
	g.SetLimit(aheadAtOnce)
	if len(all) > 0 && all[0].layer.shared() {
		g.SetLimit(sharedAtOnce)
	}
	for _, r := range all {
		g.Go(func() error {
			if m.ctx.Err() == nil {
				r.layer = r.layer.on(withOrder(r.layer.bytes.context(), r.order()))
				m.note(r.fetch())
			}
			return nil
		})
	}
	_ = g.Wait() // errors are noted
}

// fetch reads all parts of a run, so that they are kept.
func (r *aheadRun) fetch() error {
	missing := slices.DeleteFunc(slices.Clone(r.parts), func(p part) bool { return r.layer.keeps(&p) })
	if len(missing) == 0 {
		return nil
	}
	if !r.layer.shared() && !r.layer.inflatedFromAfar() {
		toc.Expect(r.layer.bytes, missing[0].start, missing[len(missing)-1].end)
	}
	// What is inflated from far before it brings all that is between with it: the last
	// part comes first.
	var errs []error
	for _, p := range slices.Backward(missing) {
		errs = append(errs, r.layer.readPart(&p))
	}
	return errors.Join(errs...)
}

// keeps reports whether a part is kept as a content that may be read.
func (l *Layer) keeps(p *part) bool {
	i := slices.IndexFunc(p.entry.Extents, func(x toc.Extent) bool { return x.Offset+x.Size > p.off })
	x := p.entry.Extents[i]
	return l.files != nil && x.Digest.Known() && l.files.Has(x.Digest, x.Size) && l.files.May(x.Digest) || l.keepsWhole(&p.entry, p.off)
}

// inflatedFromAfar reports whether the places of contents are those of much more: whoever
// inflates them knows what it takes.
func (l *Layer) inflatedFromAfar() bool { return l.Format == toc.TarGzip && l.Map == nil }

// readPart reads a part, piece by piece.
func (l *Layer) readPart(p *part) error {
	c := l.Content(&p.entry)
	buf := make([]byte, min(p.size, fileBlock))
	for off, end := p.off, p.off+p.size; off < end; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), end-off)]
		if _, err := c.ReadAt(buf, off); err != nil && off+int64(len(buf)) < p.entry.Size {
			return err
		}
	}
	return nil
}

// fileRef names a file of a layer.
type fileRef struct {
	layer digest.Digest
	path  string
}

// onward is a file that is read from one end on.
type onward struct {
	end     int64 // of what was read
	fetched int64 // up to where it is fetched ahead
	window  int64 // how much ahead
}

// How much of a file is fetched ahead of a program that reads on and on: at first, and
// at most. The program has to have read a little first.
const (
	firstWindow = 1 << 20
	lastWindow  = 16 << 20
	maxStreams  = 1024 // files for which this is remembered
)

// readOn takes note of a read of a file, and fetches what is behind if it goes on where
// the last one has ended: the more, the longer it does.
func (m *Mount) readOn(file fileRef, off, size, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams == nil || len(m.streams) > maxStreams {
		m.streams = make(map[fileRef]*onward)
	}
	s := m.streams[file]
	// The kernel's reads ahead of the program are several at a time, in any order.
	if s == nil || off < s.end-firstWindow || off > s.end+firstWindow {
		m.streams[file] = &onward{end: off + size, fetched: off + size}
		return
	}
	s.end = max(s.end, off+size)
	if s.fetched = max(s.fetched, s.end); s.fetched > s.end+s.window/2 || s.fetched >= total {
		return
	}
	s.window = min(max(2*s.window, firstWindow), lastWindow)
	from := s.fetched
	s.fetched = min(s.end+s.window, total)
	to := s.fetched
	m.start(func() { m.fetchFile(file, from, to) })
}

// fetchFile fetches the bytes of a file from one to another.
func (m *Mount) fetchFile(file fileRef, from, to int64) {
	if to <= from || m.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(withUrgency(withTravel(m.ctx, &m.ahead), expected))
	defer cancel()
	l, err := m.p.Layer(ctx, file.layer, m.manifest())
	if err != nil {
		m.note(err)
		return
	}
	defer l.Release()
	parts := l.partsOf([]profile.File{{Path: file.path, Ranges: []profile.Range{{Offset: from, Size: to - from}}}}, func(string) int { return 0 })
	m.fetchRuns(l.runs(parts, runGap))
}

// FetchRest fetches all of the image that is not here, once nothing else is to be
// fetched. It returns at once.
func (m *Mount) FetchRest() {
	m.begun.Do(func() {
		m.setRest("fetching")
		m.start(func() {
			ctx := withUrgency(withTravel(m.ctx, &m.ahead), background)
			for _, l := range m.layers {
				if err := m.fetchLayer(ctx, chunkstore.Whole{Digest: l.Digest, Size: l.Size}); err != nil {
					m.note(err)
					m.setRest(err.Error())
					return
				}
			}
			m.setRest("complete")
		})
	})
}

func (m *Mount) setRest(s string) { m.rest.Store(&s) }

// fetchLayer fetches what is missing of a layer: of one that is read by its chunks, those that its files consist of.
func (m *Mount) fetchLayer(ctx context.Context, w chunkstore.Whole) error {
	if !m.p.unpacks(w) {
		return m.p.fetchStripes(ctx, w.Digest)
	}
	l, err := m.p.Layer(ctx, w.Digest, m.manifest())
	if err != nil {
		return err
	}
	defer l.Release()
	if l.Map == nil {
		return m.p.fetchStripes(ctx, w.Digest)
	}
	var missing []part
	for e := range l.All() {
		for _, p := range partsOfAll(e, 0) {
			if !l.keeps(&p) {
				missing = append(missing, p)
			}
		}
	}
	m.fetchRuns(l.runs(missing, runGap))
	if i := slices.IndexFunc(missing, func(p part) bool { return !l.keeps(&p) }); i >= 0 {
		return fmt.Errorf("layer %s: not all of %q came", w.Digest, missing[i].entry.Name)
	}
	return nil
}

// fetchStripes fetches what is missing of a blob, several stripes at a time, each in its
// turn.
func (p *Repository) fetchStripes(ctx context.Context, d digest.Digest) error {
	b, err := p.Blob(ctx, d)
	if err != nil {
		return err
	}
	defer b.Release()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(restAtOnce)
	for off := int64(0); off < b.Size(); off += chunk.StripeSize {
		g.Go(func() error { return p.fetchStripe(ctx, b, off) })
	}
	return g.Wait()
}

func (p *Repository) fetchStripe(ctx context.Context, b *Blob, off int64) error {
	m, err := chunk.Grid(b.Digest(), b.Size())
	if err != nil {
		return err
	}
	first, end := m.Find(off), m.Find(min(off+chunk.StripeSize, b.Size())-1)+1
	for first < end && b.near.Has(m.At(first)) {
		first++
	}
	for first < end && b.near.Has(m.At(end-1)) {
		end--
	}
	if first == end {
		return nil
	}
	from, last := m.At(first).Offset, m.At(end-1)
	size := last.Offset + last.Size - from
	done, err := p.registry.turns.begin(ctx, size)
	if err != nil {
		return err
	}
	defer done()
	r := &pieces{repository: p, blob: b, ctx: ctx}
	return r.eachChunk(from, size, func([]byte) {})
}
