package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

// unpacks reports whether a layer may be read by the chunks that it unpacks to, of which a parent has those that are not
// here, see package rebuild: by its bytes more would come.
func (p *Repository) unpacks(w chunkstore.Whole) bool {
	r := p.registry
	m, _ := r.cfg.Catalog.Member(p.String(), w.Digest)
	known := m.MediaType != "" && m.MediaType != "application/octet-stream"
	return r.cfg.Edge != nil && r.cfg.Direct == nil && w.Size >= rebuild.Least && w.Digest.Algorithm() == digest.SHA256 &&
		(!known || strings.Contains(m.MediaType, "tar")) && !r.Stored(w.Digest, w.Size)
}

// unpackable implements [lazy.Unpacked] for a layer as the repository's caller reads it.
type unpackable struct {
	repository *Repository
	blob       *Blob
	files      *contents // for as long as the node runs; nil if nothing is kept
}

// unpacked returns what a layer unpacks to, nil if it is to be read by its bytes.
func (p *Repository) unpacked(b *Blob, files *contents) lazy.Unpacked {
	if b.kept != nil || b.Proven() || !p.unpacks(chunkstore.Whole{Digest: b.Digest(), Size: b.Size()}) {
		return nil
	}
	return unpackable{p, b, files}
}

func (u unpackable) ref() chunk.Ref {
	return chunk.Ref{Blob: u.blob.Digest(), Total: u.blob.Size(), Size: u.blob.Size()}
}

// Map implements [lazy.Unpacked].
func (u unpackable) Map(ctx context.Context) ([]byte, error) {
	return u.repository.registry.cfg.Edge.Map(ctx, u.ref(), u.repository.givers(), u.came)
}

// came counts what comes for the layer.
func (u unpackable) came(origin string, n int64) {
	if n > 0 {
		u.repository.registry.cfg.Came(u.blob.image, origin, n)
	}
}

// ReaderAt implements [lazy.Unpacked].
func (u unpackable) ReaderAt(ctx context.Context, m *cdc.Map) io.ReaderAt { return u.readerAt(ctx, m) }

func (u unpackable) readerAt(ctx context.Context, m *cdc.Map) *unpackedBytes {
	return &unpackedBytes{unpackable: u, tar: u.repository.registry.tars.of(u, m), ctx: ctx}
}

// reader is who reads the layer.
func (u unpackable) reader() *rebuild.Reader {
	as := u.repository.identities()[0]
	return &rebuild.Reader{
		Name:   u.repository.String() + "\n" + as.Authorization(),
		Givers: u.repository.givers(),
		Came:   u.came,
		Has:    u.has,
		Keep:   u.keep,
	}
}

// has reports whether a chunk is kept by itself, and may be read.
func (u unpackable) has(c *cdc.Chunk) bool {
	return u.files != nil && u.files.Has(c.Digest, c.Size) && u.files.May(c.Digest)
}

// keep keeps a chunk by itself, as contents of files are.
func (u unpackable) keep(c *cdc.Chunk, p []byte) {
	if u.files != nil {
		u.repository.registry.report(u.files.Keep(c.Digest, c.Size, bytes.NewReader(p)))
	}
}

// older returns layers of the repository that are here and may have much in common with this one.
func (u unpackable) older(ctx context.Context) (all []rebuild.OldLayer) {
	p := u.repository
	for _, o := range p.older(ctx, chunkstore.Whole{Digest: u.blob.Digest(), Size: u.blob.Size()}) {
		all = append(all, rebuild.OldLayer{Digest: o.Digest, Open: func(ctx context.Context) (rebuild.Layer, error) { return p.registry.openWhole(ctx, o.Digest) }})
	}
	return all
}

// read returns layers of the repository that were read by their chunks, and may have much in common with this one. Members of
// the image before are among those of about its size.
func (u unpackable) read() (all []rebuild.ReadLayer) {
	p, of := u.repository, chunkstore.Whole{Digest: u.blob.Digest(), Size: u.blob.Size()}
	if u.files == nil {
		return nil
	}
	var near []chunkstore.Whole
	for d, m := range p.registry.cfg.Catalog.Members(p.String(), mostLooked) {
		if o := (chunkstore.Whole{Digest: d, Size: m.Size}); d != of.Digest && m.Size >= of.Size/2 && m.Size <= 2*of.Size && !p.registry.Stored(d, m.Size) {
			near = append(near, o)
		}
	}
	for _, o := range nearest(near, of) {
		all = append(all, rebuild.ReadLayer{
			Digest: o.Digest,
			Map: func(ctx context.Context) (*cdc.Map, error) {
				return p.registry.cfg.Layers.LastMap(ctx, p.Host, o.Digest)
			},
			Has:  func(c *cdc.Chunk) bool { return u.files.Has(c.Digest, c.Size) },
			Read: u.files.chunk,
		})
	}
	return all
}

// unpackedBytes are the bytes of the tar of a layer, of which the chunks are had one by one.
type unpackedBytes struct {
	unpackable
	tar   *rebuild.Tar
	ctx   context.Context
	known bool // contents are kept by these chunks, so that what is kept is known
}

func (u *unpackedBytes) context() context.Context { return u.ctx }

func (u *unpackedBytes) on(ctx context.Context) layerReader {
	other := *u
	other.ctx = ctx
	return &other
}

// chunks returns the numbers of those chunks from one byte of the tar to another that are not inline.
func (u *unpackedBytes) chunks(start, end int64) (all []int) {
	m := u.tar.Map
	for i := m.Find(start); i < len(m.Chunks) && m.Chunks[i].Offset < end; i++ {
		if m.Chunks[i].Inline == nil {
			all = append(all, i)
		}
	}
	return all
}

// ReadAt implements [io.ReaderAt].
func (u *unpackedBytes) ReadAt(p []byte, off int64) (n int, err error) {
	m := u.tar.Map
	if off < 0 {
		return 0, fmt.Errorf("layer %s: read at %d", u.blob.Digest(), off)
	}
	want := p[:max(0, min(int64(len(p)), m.Size()-off))]
	if len(want) > 0 {
		numbers := u.chunks(off, off+int64(len(want)))
		got, err := u.get(numbers)
		if err != nil {
			return 0, err
		}
		u.keepCut(numbers, got, off, off+int64(len(want)))
		for i := m.Find(off); n < len(want); i++ {
			c := &m.Chunks[i]
			from := c.Inline
			if from == nil {
				from, got = got[0], got[1:]
			}
			n += copy(want[n:], from[off+int64(n)-c.Offset:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// keepCut keeps those of some chunks of which there is more than from one byte to another: whoever reads on needs the rest.
func (u *unpackedBytes) keepCut(chunks []int, got [][]byte, start, end int64) {
	for k, i := range chunks {
		if c := &u.tar.Map.Chunks[i]; (c.Offset < start || c.Offset+c.Size > end) && !u.has(c) {
			u.keep(c, got[k])
		}
	}
}

// get gets chunks: those that are kept, as what was expected is, and then the others.
func (u *unpackedBytes) get(chunks []int) ([][]byte, error) {
	all := make([][]byte, len(chunks))
	var missing []int
	for k, i := range chunks {
		if all[k] = u.files.chunk(&u.tar.Map.Chunks[i]); all[k] == nil {
			missing = append(missing, i)
			continue
		}
		travelled(u.ctx, "disk", len(all[k]))
	}
	if len(missing) == 0 {
		return all, nil
	}
	got, err := u.fetch(missing)
	if err != nil {
		return nil, err
	}
	for k := range all {
		if all[k] == nil {
			all[k], got = got[0], got[1:]
		}
	}
	return all, nil
}

// chunk returns a chunk that is kept by itself, as when files of a layer, or others, were read one by one; else nil.
func (c *contents) chunk(k *cdc.Chunk) []byte {
	if c == nil || !c.Has(k.Digest, k.Size) {
		return nil
	}
	p := make([]byte, k.Size)
	if _, err := c.Readable.ReadAt(k.Digest, k.Size, p, 0); err != nil {
		return nil
	}
	return p
}

// fetch gets chunks in their turn. Who waits for some that are near each other gets more of what is near.
func (u *unpackedBytes) fetch(chunks []int) ([][]byte, error) {
	r := u.repository.registry
	bytes, source := u.away(chunks), "disk"
	if bytes > 0 {
		source = chunk.Parent
		done, err := r.turns.begin(u.ctx, bytes)
		if err != nil {
			return nil, err
		}
		defer done()
		u.expectNear(chunks)
	}
	waited := r.turns.wait(u.ctx)
	got, err := u.tar.Get(u.ctx, u.reader(), chunks)
	waited()
	if err != nil {
		if cause := u.ctx.Err(); cause != nil {
			return nil, cause
		}
		return nil, fmt.Errorf("layer %s: %w: %w", u.blob.Digest(), lazy.ErrUnpacked, err)
	}
	for _, i := range chunks {
		travelled(u.ctx, source, int(u.tar.Share(i)))
	}
	r.turns.arrived(int(bytes))
	return got, nil
}

// away is about how many bytes of the layer those of some chunks take that are neither here nor on their way.
func (u *unpackedBytes) away(chunks []int) (n int64) {
	for _, i := range chunks {
		if u.tar.Away(i) {
			n += u.tar.Share(i)
		}
	}
	return n
}

// expectNear has what is behind chunks come with them, the more has been read here and there near them: files that are
// read together are near each other in a layer.
func (u *unpackedBytes) expectNear(chunks []int) {
	if urgencyOf(u.ctx) != demanded || !u.known {
		return
	}
	last := &u.tar.Map.Chunks[chunks[len(chunks)-1]]
	near := u.repository.registry.pieces.miss(pieceKey{u.repository.Host, u.blob.Digest() + "\ntar", last.Offset}, reach)
	if near < 2 {
		return
	}
	end := last.Offset + last.Size
	u.Expect(end, min(end+min(int64(pieceSize)<<near, reach), u.tar.Map.Size()))
}

// Expect implements [toc.Expecter]: what is neither here nor on its way comes in its turn.
func (u *unpackedBytes) Expect(start, end int64) {
	if start >= end || start >= u.tar.Map.Size() || !u.tar.Foresees() {
		return
	}
	missing := slices.DeleteFunc(u.chunks(start, end), func(i int) bool { return u.tar.Coming(i) || u.has(&u.tar.Map.Chunks[i]) })
	for _, batch := range u.tar.Batches(missing) {
		go u.expect(batch)
	}
}

func (u *unpackedBytes) expect(chunks []int) {
	bytes := u.away(chunks)
	r := u.repository.registry
	done, err := r.turns.begin(u.ctx, bytes)
	if err != nil {
		return
	}
	defer done()
	u.tar.Expect(u.ctx, u.reader(), chunks)
	r.turns.arrived(int(bytes))
}

// tars are the layers that are read by their chunks, of those that were read last. The zero value is ready to use.
type tars struct {
	mu  sync.Mutex
	all []*openTar // the one that was used last is the last
}

// maxTars is how many layers are remembered so, and maxTarChunks how many chunks of all of them, beside those of the last
// one: each takes about 400 bytes, with those of older layers and what is like them there.
const (
	maxTars      = 64
	maxTarChunks = 1 << 18
)

// openTar is a layer of a repository: older ones of others tell nothing to who reads there.
type openTar struct {
	repository string
	blob       digest.Digest
	older      *rebuild.Older
	tar        *rebuild.Tar
}

// of returns the tar of a layer with a map.
func (t *tars) of(u unpackable, m *cdc.Map) *rebuild.Tar {
	t.mu.Lock()
	defer t.mu.Unlock()
	edge := u.repository.registry.cfg.Edge
	i := slices.IndexFunc(t.all, func(o *openTar) bool { return o.repository == u.repository.String() && o.blob == u.blob.Digest() })
	var o *openTar
	if i >= 0 {
		o = t.all[i]
		t.all = slices.Delete(t.all, i, i+1)
	} else {
		o = &openTar{repository: u.repository.String(), blob: u.blob.Digest(), older: edge.LookAt(u.older(edge.Life()), u.read(), u.repository.registry.shelves())}
	}
	if o.tar == nil || o.tar.Map != m {
		o.tar = edge.Tar(u.ref(), m, o.older)
	}
	first, chunks := len(t.all), 0
	for first > 0 && len(t.all)-first < maxTars-1 {
		if chunks += len(t.all[first-1].tar.Map.Chunks); chunks > maxTarChunks {
			break
		}
		first--
	}
	t.all = append(slices.Clone(t.all[first:]), o)
	return o.tar
}

// has reports whether a layer of a repository was read by its chunks lately.
func (t *tars) has(repository string, d digest.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.all, func(o *openTar) bool { return o.repository == repository && o.blob == d })
}

// expectShared has parts of a file come that other members are to have fetched, several at a time.
func (l *Layer) expectShared(e *toc.Entry, missing []toc.Extent) {
	slots := make(chan struct{}, sharedAtOnce)
	c := l.Content(e)
	for _, x := range missing {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			_, _ = c.ReadAt(make([]byte, 1), x.Offset) // who reads the file is told of errors
		}()
	}
}
