package lazy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/flight"
	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/erofs"
	"github.com/granary-oci/granary/toc/estargz"
	"github.com/granary-oci/granary/toc/gzip"
	"github.com/granary-oci/granary/toc/squashfs"
	"github.com/granary-oci/granary/toc/tarball"
	"github.com/granary-oci/granary/toc/zstdchunked"
)

const (
	// openFor bounds the opening of a layer: one of 50 GB that has to be read at
	// 15 MB/s takes so long.
	openFor = time.Hour
	// maxOpen and maxRemembered bound the layers that are remembered beside the last
	// one, and the entries of all, each of which takes about 200 bytes.
	maxOpen       = 512
	maxRemembered = 1 << 19
)

// Source is a layer's bytes, as somebody may read them.
type Source interface {
	Size() int64
	// ReaderAt returns any part of them, for as long as ctx lives.
	ReaderAt(ctx context.Context) io.ReaderAt
	// Stream returns all of them in order. It ends with io.EOF only after the blob
	// has matched its digest.
	Stream(ctx context.Context) io.ReadCloser
}

// Request says which layer is opened, and how.
type Request struct {
	// Host is whose layer it is: what a layer says of itself is only as good as who
	// sent it.
	Host string
	// Layer describes it, with its annotations.
	Layer ocispec.Descriptor
	// Source are its bytes.
	Source Source
	// Complete reports whether all of them are here. nil is not known.
	Complete func() bool
	// Unpacked is what the layer unpacks to, if that may be had without its bytes. nil is for reading these.
	Unpacked Unpacked
	// Ask asks another member for what is derived from the layer. nil asks nobody.
	Ask func(ctx context.Context, kind Kind) ([]byte, error)

	table digest.Digest // see Layer
}

// Layer is a layer that has been opened.
type Layer struct {
	*toc.Layer
	Format toc.Format
	// Borrowed says that its table is another node's word, see [Layers.Distrust].
	Borrowed bool
	// Map is the content map that it is read by; nil if it is read by its bytes. Otherwise places in the table are
	// those of the tar, which is what the layer is read from, see [Unpacked].
	Map *cdc.Map

	// table stands for the blob and what was said of where in it the table is: another
	// manifest may name another table of the same layer.
	table digest.Digest
}

// weight is about how many entries take as much memory.
func (l *Layer) weight() int {
	n := l.Len()
	if l.Map != nil {
		n += len(l.Map.Chunks)
	}
	return n
}

// on returns the layer as it is read from r.
func (l *Layer) on(r io.ReaderAt) *Layer {
	on := *l
	on.Layer = l.On(r)
	return &on
}

// by returns the layer as it is read by who has asked for it, for as long as ctx lives.
func (l *Layer) by(ctx context.Context, q Request) *Layer {
	if l.Map != nil {
		return l.on(q.Unpacked.ReaderAt(ctx, l.Map))
	}
	return l.on(q.Source.ReaderAt(ctx))
}

// suits reports whether the layer was opened as it still should be: by its bytes, if all of them are here.
func (l *Layer) suits(q Request) bool {
	return l.Map == nil || q.Unpacked != nil && (q.Complete == nil || !q.Complete())
}

// Layers opens layers and remembers them. It is safe for concurrent use.
type Layers struct {
	derived *Derived
	flights flight.Group
	spans   gzip.Spans
	maps    sync.Mutex // held while a content map is unpacked: a hostile one takes 400 MB for that

	mu         sync.Mutex
	open       []remembered // the one that was used last is the last
	distrusted map[digest.Digest]bool
	byBytes    map[digest.Digest]time.Time // until when they are not read by their chunks
}

type remembered struct {
	key   string
	blob  digest.Digest
	layer *Layer
}

// NewLayers returns layers whose indexes are kept in derived.
func NewLayers(derived *Derived) *Layers { return &Layers{derived: derived} }

// Open opens a layer, to be read from its source for as long as ctx lives. The error
// wraps [toc.ErrMalformed], [toc.ErrLimit] or [toc.ErrUnsupported] if the layer is to
// blame.
func (l *Layers) Open(ctx context.Context, q Request) (*Layer, error) {
	q.Layer.Size = q.Source.Size()
	annotated, err := toc.AnnotatedDigest(q.Layer.Annotations)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", q.Layer.Digest, err)
	}
	q.table = digest.FromString(strings.Join([]string{string(q.Layer.Digest), annotated.String(), string(toc.Announced(q.Layer)), position(q.Layer)}, "\n"))
	key := q.Host + "\n" + string(q.table)
	if layer, ok := l.recall(key); ok && layer.suits(q) {
		return layer.by(ctx, q), nil
	}
	// Members that ask each other for the same must not wait for each other: who asks
	// nobody waits for nobody who does.
	opened, err := l.flights.Do(ctx, fmt.Sprintf("%v %v\n%s", q.Ask != nil, q.Unpacked != nil, key), openFor, func(ctx context.Context) (any, error) {
		return l.openOnce(ctx, key, q)
	})
	if errors.Is(err, chunk.ErrDenied) { // which binds whoever began, and nobody else
		opened, err = l.openOnce(ctx, key, q)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", q.Layer.Digest, err)
	}
	return opened.(*Layer).by(ctx, q), nil
}

// openOnce opens a layer and remembers it. One that is complete is checked before it is
// shown: nobody tells of that again.
func (l *Layers) openOnce(ctx context.Context, key string, q Request) (*Layer, error) {
	layer, err := l.openAs(ctx, q)
	if err != nil {
		return nil, err
	}
	l.remember(key, q.Layer.Digest, layer)
	if !listed(layer.Format) || q.Complete == nil || !q.Complete() {
		return layer, nil
	}
	if err := l.check(ctx, q.Layer.Digest, layer, q.Source); err != nil {
		l.derived.report(err)
	}
	if !l.derived.disagrees(q.table) {
		return layer, nil
	}
	if layer, err = l.openAs(ctx, q); err == nil {
		l.remember(key, q.Layer.Digest, layer)
	}
	return layer, err
}

// position returns all that annotations say of where a table is.
func position(desc ocispec.Descriptor) string {
	var all []string
	for key, value := range desc.Annotations {
		if strings.Contains(key, "zstd-chunked") {
			all = append(all, key+"="+value)
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

func (l *Layers) recall(key string) (*Layer, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.open, func(r remembered) bool { return r.key == key })
	if i < 0 {
		return nil, false
	}
	found := l.open[i]
	l.open = append(slices.Delete(l.open, i, i+1), found)
	return found.layer, true
}

func (l *Layers) remember(key string, blob digest.Digest, layer *Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The reader that it was opened with is not kept: it is somebody's.
	l.open = append(slices.DeleteFunc(l.open, func(r remembered) bool { return r.key == key }), remembered{key, blob, layer.on(nil)})
	total := 0
	for i := len(l.open) - 1; i >= 0; i-- {
		total += l.open[i].layer.weight()
		if i < len(l.open)-1 && (total > maxRemembered || len(l.open)-i > maxOpen) {
			l.open = slices.Clone(l.open[i+1:])
			return
		}
	}
}

// forget forgets how a blob was opened.
func (l *Layers) forget(blob digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = slices.DeleteFunc(l.open, func(r remembered) bool { return r.blob == blob })
}

// Distrust says that what another member has said of a layer is wrong: it is found
// out here from now on.
func (l *Layers) Distrust(blob digest.Digest) {
	l.forget(blob)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.distrusted == nil || len(l.distrusted) >= maxOpen {
		l.distrusted = make(map[digest.Digest]bool)
	}
	l.distrusted[blob] = true
}

func (l *Layers) trusts(blob digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.distrusted[blob]
}

// Derived returns an object that is kept. The error is [chunk.ErrNotFound] if it is
// not.
func (l *Layers) Derived(ctx context.Context, kind Kind, blob digest.Digest) ([]byte, error) {
	return l.derived.Get(ctx, kind, blob)
}

// SetDerived keeps an object that was derived elsewhere.
func (l *Layers) SetDerived(ctx context.Context, kind Kind, of digest.Digest, p []byte) {
	l.derived.Put(ctx, kind, of, p)
}

// openAs opens a layer as what it is, by what was read of it when it was opened before, and
// if that does not do, anew.
func (l *Layers) openAs(ctx context.Context, q Request) (*Layer, error) {
	key := digest.FromString(q.Host + "\n" + string(q.table))
	r := openingOf(ctx, l.derived, key, q.Source.ReaderAt(ctx), q.Layer.Size)
	layer, err := l.openFrom(ctx, r, q)
	if err != nil && len(r.kept) > 0 {
		r = &opening{from: r.from, size: r.size}
		layer, err = l.openFrom(ctx, r, q)
	}
	if err == nil {
		r.opened(ctx, l.derived, key)
	}
	return layer, err
}

func (l *Layers) openFrom(ctx context.Context, r io.ReaderAt, q Request) (*Layer, error) {
	announced := toc.Announced(q.Layer)
	if announced != "" {
		layer, err := l.openFormat(ctx, announced, r, q)
		if err == nil || !errors.Is(err, toc.ErrFormat) {
			return layer, err
		}
	} else if d, _ := toc.AnnotatedDigest(q.Layer.Annotations); !d.Known() { // or its own table is worth more than a map
		if layer, ok := l.openUnpacked(ctx, packing(q.Layer.MediaType), r, q); ok {
			return layer, nil
		}
	}
	formats, err := toc.Recognize(r, q.Layer.Size)
	if err != nil {
		return nil, err
	}
	for _, f := range formats {
		if f == announced {
			continue
		}
		layer, err := l.openFormat(ctx, f, r, q)
		if err == nil || !errors.Is(err, toc.ErrFormat) {
			return layer, err
		}
	}
	return nil, fmt.Errorf("%w: the layer, of type %q, is of no format that is known", toc.ErrUnsupported, q.Layer.MediaType)
}

// packing returns how a tar is packed by its media type: in gzip, if that does not say.
func packing(mediaType string) toc.Format {
	switch {
	case strings.HasSuffix(mediaType, "zstd"):
		return toc.TarZstd
	case strings.HasSuffix(mediaType, "tar"):
		return toc.Tar
	}
	return toc.TarGzip
}

// openFormat opens a layer as one of a format. A table that the layer carries, and
// that is known to disagree with the rest of it, is passed over.
func (l *Layers) openFormat(ctx context.Context, f toc.Format, r io.ReaderAt, q Request) (*Layer, error) {
	if f == toc.Announced(q.Layer) {
		if layer, ok := l.openUnpacked(ctx, f, r, q); ok {
			return layer, nil
		}
	}
	if listed(f) && l.derived.disagrees(q.table) {
		return nil, toc.ErrFormat
	}
	layer, borrowed, err := openers[f](l, ctx, r, q)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f, err)
	}
	return &Layer{Layer: layer, Format: f, Borrowed: borrowed, table: q.table}, nil
}

// listed reports whether layers of a format carry a table of their own.
func listed(f toc.Format) bool { return f == toc.EStargz || f == toc.ZstdChunked }

type opener func(l *Layers, ctx context.Context, r io.ReaderAt, q Request) (layer *toc.Layer, borrowed bool, err error)

var openers = map[toc.Format]opener{
	toc.EStargz:     direct(estargz.Open),
	toc.ZstdChunked: direct(zstdchunked.Open),
	toc.Tar:         direct(tarball.Open),
	toc.EROFS:       direct(erofs.Open),
	toc.Squashfs:    direct(squashfs.Open),
	toc.TarGzip:     (*Layers).openGzip,
	toc.TarZstd:     (*Layers).openZstd,
}

func direct(open toc.Opener) opener {
	return func(_ *Layers, _ context.Context, r io.ReaderAt, q Request) (*toc.Layer, bool, error) {
		layer, err := open(r, q.Layer)
		return layer, false, err
	}
}

// openGzip opens an ordinary tar+gzip by its index, which is made if need be.
func (l *Layers) openGzip(ctx context.Context, r io.ReaderAt, q Request) (layer *toc.Layer, borrowed bool, err error) {
	borrowed, err = l.derive(ctx, KindGzip, q, func(p []byte) error {
		index, err := gzip.Decode(bytes.NewReader(p))
		if err != nil {
			return err
		}
		layer, err = gzip.Open(r, q.Layer, index, &l.spans)
		return err
	}, func() ([]byte, error) {
		index, err := stream(ctx, q.Source, func(r io.Reader) (*gzip.Index, error) { return gzip.Build(r, tarball.Scan) })
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		err = index.Encode(&b)
		return b.Bytes(), err
	})
	return layer, borrowed, err
}

// openZstd opens an ordinary tar+zstd by its table, which is made if need be.
func (l *Layers) openZstd(ctx context.Context, r io.ReaderAt, q Request) (layer *toc.Layer, borrowed bool, err error) {
	borrowed, err = l.derive(ctx, kindTable, q, func(p []byte) error {
		table, err := unmarshalTable(p, q.Layer.Size)
		if err != nil {
			return err
		}
		layer, err = tarball.OpenZstd(r, q.Layer, table)
		return err
	}, func() ([]byte, error) {
		table, err := stream(ctx, q.Source, tarball.ScanZstd)
		if err != nil {
			return nil, err
		}
		return marshalTable(table)
	})
	return layer, borrowed, err
}

// derive gets an object that is derived from a layer: kept, else from another member,
// else made. use may refuse what it is given.
func (l *Layers) derive(ctx context.Context, kind Kind, q Request, use func([]byte) error, build func() ([]byte, error)) (borrowed bool, err error) {
	blob := q.Layer.Digest
	if p, err := l.derived.Get(ctx, kind, blob); err == nil && use(p) == nil {
		return false, nil
	}
	if q.Ask != nil && l.trusts(blob) {
		if p, err := q.Ask(ctx, kind); err == nil && use(p) == nil {
			return true, nil // which goes no further than this node
		}
	}
	p, err := build()
	if err != nil {
		return false, err
	}
	l.derived.Put(ctx, kind, blob, p)
	return false, use(p)
}

// stream makes something of all of a layer's bytes, which match its digest.
func stream[T any](ctx context.Context, src Source, read func(io.Reader) (T, error)) (T, error) {
	s := src.Stream(ctx)
	defer s.Close()
	made, err := read(s)
	if err == nil {
		_, err = io.Copy(io.Discard, s) // to where it has matched
	}
	return made, err
}
