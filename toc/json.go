package toc

import (
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
)

// DecodeJSON reads a table as [EncodeJSON] writes it, or as eStargz and zstd:chunked
// have it: {"version":1,"entries":[…]}, entries in the order of the tar. Chunks follow
// their file, in order and without gaps.
//
// end is where the content ends in the layer's bytes, which are 0 to end. An extent
// whose end the table leaves out ends where the next one starts, or there.
//
// It keeps no more than the table that it returns, and one entry. Errors wrap
// [ErrMalformed] or [ErrLimit], or are those of r; r has been read to its end if there
// is none.
func DecodeJSON(r io.Reader, end int64) (*TOC, error) { return newDecoder(r, end).table() }

// DecodeStargz reads a table like [DecodeJSON], but leaves out what eStargz's tools put
// into a layer for themselves: the table, and the landmarks. prefetch is how many of
// the layer's first bytes it says are read first; 0 is not said.
func DecodeStargz(r io.Reader, end int64) (t *TOC, prefetch int64, err error) {
	d := newDecoder(r, end)
	d.private = private
	t, err = d.table()
	return t, d.prefetch, err
}

// prefetchLandmark follows the files that are read first.
const prefetchLandmark = ".prefetch.landmark"

// unknown is the end of an extent that the table leaves out.
const unknown = math.MaxInt64

// decoder makes a table of what it reads.
type decoder struct {
	json     *jsonReader
	end      int64
	private  map[string]bool // files to leave out
	prefetch int64
	version  int64
	tables   int // how many were there
	b        Builder
	next     jsonEntry // what is being read
	others   []int64   // where content begins in the layer that the table does not have

	// The regular file that is being read, whose chunks may follow.
	open    bool
	file    Entry
	covered int64 // bytes of it, by its extents and holes
	fileEnd int64 // the end that its own entry gives; or unknown
}

func newDecoder(r io.Reader, end int64) *decoder {
	return &decoder{json: newJSONReader(r), end: end}
}

func (d *decoder) table() (*TOC, error) {
	d.json.object(d.member)
	d.flush()
	d.json.finish()
	switch {
	case d.json.err != nil:
		return nil, fmt.Errorf("table: %w", d.json.err)
	case d.version != 1:
		return nil, fmt.Errorf("table: %w: version %d", ErrMalformed, d.version)
	case d.tables != 1:
		return nil, fmt.Errorf("table: %w: %d lists of entries", ErrMalformed, d.tables)
	}
	t, err := d.b.Done()
	if err != nil {
		return nil, fmt.Errorf("table: %w", err)
	}
	t.endExtents(d.others, d.end)
	return t, nil
}

func (d *decoder) member(key []byte) {
	switch string(key) {
	case "version":
		d.version = d.json.integer()
	case "entries":
		d.tables++
		member := func(key []byte) { d.next.member(d.json, key) }
		d.json.array(func() {
			d.next = jsonEntry{endOffset: unknown}
			d.json.object(member)
			d.entry(&d.next)
		})
	default:
		d.json.skip()
	}
}

// entry takes an entry that has been read.
func (d *decoder) entry(e *jsonEntry) {
	if d.json.err != nil {
		return
	}
	if e.typ == "chunk" {
		d.chunk(e)
		return
	}
	d.flush()
	typ, ok := ParseType(e.typ)
	if !ok {
		d.fail(e.name, fmt.Errorf("%w: a type %q", ErrMalformed, shorten(e.typ)))
		return
	}
	x, err := e.entry(typ)
	if err != nil {
		d.fail(e.name, err)
		return
	}
	if typ != Regular {
		d.add(x)
		return
	}
	x.Extents = d.file.Extents[:0]
	d.open, d.file, d.covered = true, x, 0
	d.fileEnd, e.endOffset = e.endOffset, unknown
	if x.Size > 0 {
		d.extend(e)
	}
}

func (d *decoder) fail(name string, err error) {
	d.json.fail(fmt.Errorf("entry %q: %w", shorten(name), err))
}

func (d *decoder) add(e Entry) {
	if d.private != nil && d.private[Clean(e.Name)] {
		for _, x := range e.Extents {
			d.others = append(d.others, x.Start)
		}
		if len(e.Extents) > 0 && Clean(e.Name) == prefetchLandmark {
			d.prefetch = e.Extents[0].Start
		}
		return
	}
	if err := d.b.Add(e); err != nil {
		d.json.fail(err)
	}
}

func (d *decoder) chunk(e *jsonEntry) {
	switch {
	case !d.open:
		d.fail(e.name, fmt.Errorf("%w: a chunk that follows no file", ErrMalformed))
	case e.name != "" && Clean(e.name) != Clean(d.file.Name):
		d.fail(e.name, fmt.Errorf("%w: a chunk that follows %q", ErrMalformed, shorten(d.file.Name)))
	default:
		d.extend(e)
	}
}

// extend adds the chunk that an entry says to the file.
func (d *decoder) extend(e *jsonEntry) {
	size := e.chunkSize
	if size == 0 { // it goes on to the file's end
		size = d.file.Size - d.covered
	}
	switch {
	case e.chunkOffset != d.covered || size <= 0 || size > d.file.Size-d.covered:
		d.fail(d.file.Name, fmt.Errorf("%w: a chunk [%d+%d] after %d of %d bytes", ErrMalformed, e.chunkOffset, e.chunkSize, d.covered, d.file.Size))
		return
	case e.offset < 0 || e.offset > d.end || e.endOffset != unknown && e.endOffset > d.end:
		d.fail(d.file.Name, fmt.Errorf("%w: a chunk at %d of a layer of %d bytes", ErrMalformed, e.offset, d.end))
		return
	case len(d.file.Extents) == MaxExtents || len(d.others) >= MaxExtents:
		d.fail(d.file.Name, fmt.Errorf("%w: more than %d extents", ErrLimit, MaxExtents))
		return
	}
	d.covered += size
	if e.chunkType == "zeros" {
		d.others = append(d.others, e.offset)
		return
	}
	d.file.Extents = append(d.file.Extents, Extent{
		Offset: e.chunkOffset, Size: size,
		Start: e.offset, End: e.endOffset, Inner: e.innerOffset, Digest: e.chunkDigest,
	})
}

// flush adds the regular file that has been read.
func (d *decoder) flush() {
	if !d.open || d.json.err != nil {
		return
	}
	d.open = false
	if d.covered != max(0, d.file.Size) {
		d.fail(d.file.Name, fmt.Errorf("%w: chunks of %d of %d bytes", ErrMalformed, d.covered, d.file.Size))
		return
	}
	if x := d.file.Extents; len(x) > 0 {
		d.endFile(&x[0], &x[len(x)-1])
		if whole := d.file.Digest; whole.Known() && x[0].Size == d.file.Size && x[0].Digest.Known() && x[0].Digest != whole {
			d.fail(d.file.Name, fmt.Errorf("%w: a digest %s, but %s of its only chunk", ErrMalformed, whole, x[0].Digest))
			return
		}
	}
	d.add(d.file)
}

// endFile sets the end that the file's own entry gives. containers/storage means that
// of the last chunk by it, and gives the chunks none; here it is the first one's.
func (d *decoder) endFile(first, last *Extent) {
	switch {
	case d.fileEnd == unknown:
	case d.fileEnd > d.end:
		d.fail(d.file.Name, fmt.Errorf("%w: content up to %d of a layer of %d bytes", ErrMalformed, d.fileEnd, d.end))
	case last.End == unknown:
		last.End = d.fileEnd
	case first.End == unknown:
		first.End = d.fileEnd
	}
}

// endExtents sets the ends that the table leaves out, by what begins next: an extent,
// or one of others.
func (t *TOC) endExtents(others []int64, end int64) {
	if !slices.ContainsFunc(t.extents, func(x Extent) bool { return x.End == unknown }) {
		return
	}
	starts := slices.Grow(others, len(t.extents)+1)
	for _, x := range t.extents {
		starts = append(starts, x.Start)
	}
	slices.Sort(starts)
	starts = append(slices.Compact(starts), end)
	for i := range t.extents {
		if x := &t.extents[i]; x.End == unknown {
			next := sort.Search(len(starts)-1, func(i int) bool { return starts[i] > x.Start })
			x.End = starts[next]
		}
	}
}
