package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/tarball"
)

// kindMap is a layer's content map as another site has it, by whose layer it is and what was said of it.
const kindMap Kind = "contents-map"

// kindLastMap is the one that a layer was read by last, by whose layer it is alone.
const kindLastMap Kind = "contents-map-last"

// Unpacked is what a layer unpacks to, where its chunks can be had without the layer's bytes.
type Unpacked interface {
	// Map returns the layer's content map, as [cdc.Map.Pack] makes it. It is somebody's word.
	Map(ctx context.Context) ([]byte, error)
	// ReaderAt returns the tar that a map is of, for as long as ctx lives. Its errors wrap [ErrUnpacked] when
	// it is better to read the layer's bytes.
	ReaderAt(ctx context.Context, m *cdc.Map) io.ReaderAt
}

// ErrUnpacked says that what a layer unpacks to cannot be had by its chunks.
var ErrUnpacked = errors.New("contents cannot be had by their chunks")

// notUnpacked is for how long a layer is read by its bytes once its chunks could not be had.
const notUnpacked = 10 * time.Minute

// openUnpacked opens a layer as the tar that it unpacks to. ok is false if that cannot be done, or need not: then all
// of the layer is here.
func (l *Layers) openUnpacked(ctx context.Context, f toc.Format, r io.ReaderAt, q Request) (layer *Layer, ok bool) {
	if q.Unpacked == nil || f == toc.EROFS || f == toc.Squashfs || q.Complete != nil && q.Complete() || !l.unpacks(q.Layer.Digest) {
		return nil, false
	}
	own := new(toc.Layer)
	if listed(f) {
		var err error
		if own, _, err = openers[f](l, ctx, r, q); err != nil || l.derived.disagrees(q.table) {
			return nil, false
		}
	}
	m, err := l.mapOf(ctx, q)
	if err != nil {
		return nil, false // and it is no fault to have none
	}
	opened, err := tarball.Open(mapped{m, q.Unpacked.ReaderAt(ctx, m)}, ocispec.Descriptor{Size: m.Size()})
	if err == nil && listed(f) {
		err = placeIn(opened, own)
	} else if err == nil {
		opened.TOC, err = opened.Cut(func(x toc.Extent) []toc.Extent { return chunksOf(m, x) })
	}
	if err != nil {
		l.derived.report(fmt.Errorf("layer %s: by its content map: %w", q.Layer.Digest, err))
		return nil, false
	}
	return &Layer{Layer: opened, Format: f, Borrowed: !listed(f), Map: m, table: q.table}, true
}

// mapOf returns a layer's content map, which is kept for when nobody can be asked.
func (l *Layers) mapOf(ctx context.Context, q Request) (*cdc.Map, error) {
	key := digest.FromString(q.Host + "\n" + string(q.table))
	if m, err := l.keptMap(ctx, kindMap, key); err == nil {
		return m, nil
	}
	p, err := q.Unpacked.Map(ctx)
	if err != nil {
		return nil, err
	}
	m, err := l.unpack(p)
	if err == nil {
		l.derived.Put(ctx, kindMap, key, p)
		l.derived.Put(ctx, kindLastMap, lastMapKey(q.Host, q.Layer.Digest), p)
	}
	return m, err
}

func (l *Layers) keptMap(ctx context.Context, kind Kind, key digest.Digest) (*cdc.Map, error) {
	p, err := l.derived.Get(ctx, kind, key)
	if err != nil {
		return nil, err
	}
	return l.unpack(p)
}

// LastMap returns the content map by which a layer of a host was read last. It is somebody's word. The error is
// [chunk.ErrNotFound] if it was read by none, or that is not kept any more.
func (l *Layers) LastMap(ctx context.Context, host string, layer digest.Digest) (*cdc.Map, error) {
	return l.keptMap(ctx, kindLastMap, lastMapKey(host, layer))
}

func lastMapKey(host string, layer digest.Digest) digest.Digest {
	return digest.FromString(host + "\n" + string(layer))
}

func (l *Layers) unpack(p []byte) (*cdc.Map, error) {
	l.maps.Lock()
	defer l.maps.Unlock()
	return cdc.Unpack(p)
}

// placeIn gives a tar the table that the layer carries, whose digests are worth more.
func placeIn(tar, own *toc.Layer) error {
	at, err := placesIn(tar.TOC, own.TOC)
	if err != nil {
		return err
	}
	tar.Digested = own.Digested
	tar.TOC, err = own.Cut(func(x toc.Extent) []toc.Extent {
		first := x.End <= own.Prefetch
		x.Start = at[place{x.Start, x.Inner}]
		x.End, x.Inner = x.Start+x.Size, 0
		if first {
			tar.Prefetch = max(tar.Prefetch, x.End)
		}
		return []toc.Extent{x}
	})
	return err
}

// chunksOf returns an extent of a tar as the chunks that it consists of.
func chunksOf(m *cdc.Map, x toc.Extent) (all []toc.Extent) {
	for i := m.Find(x.Start); x.Size > 0; i++ {
		c := &m.Chunks[i]
		part := toc.Extent{Offset: x.Offset, Size: min(x.Size, c.Offset+c.Size-x.Start), Start: x.Start}
		part.End = part.Start + part.Size
		if part.Start == c.Offset && part.Size == c.Size {
			part.Digest = c.Digest
		}
		all = append(all, part)
		x.Offset, x.Start, x.Size = x.Offset+part.Size, part.End, x.Size-part.Size
	}
	return all
}

// place is where an extent is in a layer.
type place struct{ start, inner int64 }

// placesIn returns where in the tar is what a layer's own table has. Both are of the same files, or the error says
// that they are not.
func placesIn(tar, own *toc.TOC) (map[place]int64, error) {
	at := make(map[place]int64)
	for e := range own.All() {
		if len(e.Extents) == 0 {
			continue
		}
		same, ok := tar.Lookup(e.Name)
		if !ok || same.Size != e.Size || len(same.Extents) == 0 || same.Extents[0].Offset != 0 || !whole(same.Extents, e.Size) {
			return nil, fmt.Errorf("%w: %q is another file in its content map", toc.ErrMalformed, e.Name)
		}
		for _, x := range e.Extents {
			at[place{x.Start, x.Inner}] = same.Extents[0].Start + x.Offset
		}
	}
	return at, nil
}

// whole reports whether extents of a tar are size bytes in one piece.
func whole(all []toc.Extent, size int64) bool {
	last := all[len(all)-1]
	return last.Offset+last.Size == size && last.Start-all[0].Start == last.Offset
}

// mapped is a tar of which is read what its map has, and of the rest no more than must be: a read ends with the chunk
// that it begins in, though it may be short of what was asked for.
type mapped struct {
	m   *cdc.Map
	tar io.ReaderAt
}

// ReadAt reads some bytes at a place, at least one.
func (t mapped) ReadAt(p []byte, off int64) (int, error) {
	if off >= t.m.Size() {
		return 0, io.EOF
	}
	c := &t.m.Chunks[t.m.Find(off)]
	p = p[:min(int64(len(p)), c.Offset+c.Size-off)]
	if c.Inline != nil {
		return copy(p, c.Inline[off-c.Offset:]), nil
	}
	return t.tar.ReadAt(p, off)
}

// ReadBytes has a layer be read by its bytes for a while, since its chunks could not be had.
func (l *Layers) ReadBytes(blob digest.Digest) {
	l.forget(blob)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byBytes == nil || len(l.byBytes) >= maxOpen {
		l.byBytes = make(map[digest.Digest]time.Time)
	}
	l.byBytes[blob] = time.Now().Add(notUnpacked)
}

// unpacks reports whether a layer's chunks may be tried, and its map believed.
func (l *Layers) unpacks(blob digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.distrusted[blob] && time.Now().After(l.byBytes[blob])
}
