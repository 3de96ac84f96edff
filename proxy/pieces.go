package proxy

import (
	linked "container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

const (
	// pieceSize is what is fetched for a read of a few bytes, from an upstream.
	pieceSize = 64 << 10
	// manyPieces is from where on a read of a chunk is one of the whole chunk.
	manyPieces = chunk.Size / 2
	// keptPieces bounds the pieces that are kept in memory, in bytes.
	keptPieces = 16 << 20
)

// pieces reads a blob here and there. A read of little of a chunk that is not here
// gets that much from the upstream, in pieces of 64 KiB, and not the chunk. In a
// cluster the chunk is got all the same: its owner fetches it once for all who read
// some of it.
type pieces struct {
	repository *Repository
	blob       *Blob
	ctx        context.Context
}

// ReadAt implements [io.ReaderAt].
func (r *pieces) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("blob %s: read at %d", r.blob.Digest(), off)
	}
	want := p[:max(0, min(int64(len(p)), r.blob.Size()-off))]
	for n < len(want) && err == nil {
		var k int
		k, err = r.read(want[n:], off+int64(n))
		n += k
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// read reads some of p, at least a byte.
func (r *pieces) read(p []byte, off int64) (int, error) {
	if int64(len(p)) >= manyPieces || !r.apart() {
		return r.readChunks(p, off)
	}
	ref := r.ref(off)
	p = p[:min(int64(len(p)), ref.Offset+ref.Size-off)]
	if b, err := r.blob.near.Get(r.ctx, ref); err == nil {
		return copy(p, b[off-ref.Offset:]), nil
	}
	return r.readPieces(p, off)
}

// apart reports whether parts of chunks are read.
func (r *pieces) apart() bool {
	peers := r.repository.peers()
	return r.blob.Size() > chunk.Size && (peers == nil || peers.Alone()) && !r.repository.registry.rangeless.has(r.repository.Host)
}

func (r *pieces) ref(off int64) chunk.Ref {
	m, _ := chunk.Grid(r.blob.Digest(), r.blob.Size()) // which is how the blob was opened
	return m.At(m.Find(off))
}

// readChunks reads through whole chunks, ahead if there are several.
func (r *pieces) readChunks(p []byte, off int64) (int, error) {
	from, _ := r.blob.part(false)
	rd := from.OpenSection(r.ctx, chunk.Section{Offset: off, Length: int64(len(p))})
	defer rd.Close()
	return io.ReadFull(rd, p)
}

// readPieces reads what is in one chunk, by pieces.
func (r *pieces) readPieces(p []byte, off int64) (int, error) {
	first := off / pieceSize * pieceSize
	end := min((off+int64(len(p))+pieceSize-1)/pieceSize*pieceSize, r.blob.Size())
	cache, key := &r.repository.registry.pieces, pieceKey{r.repository.Host, r.blob.Digest(), 0}
	for at := first; at < end; at += pieceSize {
		key.offset = at
		if b, ok := cache.get(key); ok {
			if at <= off {
				return copy(p, b[off-at:]), nil
			}
			end = at // fetch up to what is here
		}
	}
	end = r.ahead(first, end)
	b, err := r.fetch(first, end)
	if errors.Is(err, upstream.ErrNoRanges) {
		r.repository.registry.rangeless.add(r.repository.Host)
		return r.readChunks(p, off)
	}
	if err != nil {
		return 0, fmt.Errorf("blob %s: read at %d: %w", r.blob.Digest(), off, err)
	}
	for at := first; at < end; at += pieceSize {
		key.offset = at
		cache.put(key, b[at-first:min(at+pieceSize, end)-first])
	}
	r.complete(r.ref(off))
	return copy(p, b[off-first:]), nil
}

// ahead returns up to where is fetched what is asked for from first to end. Who has
// read what is before that gets as much again, up to the end of the chunk: reading on,
// by however little, takes few requests.
func (r *pieces) ahead(first, end int64) int64 {
	cache, key := &r.repository.registry.pieces, pieceKey{r.repository.Host, r.blob.Digest(), first}
	for first-key.offset < chunk.Size {
		key.offset -= pieceSize
		if _, ok := cache.get(key); !ok {
			key.offset += pieceSize
			break
		}
	}
	ref := r.ref(first)
	return max(end, min(first+first-key.offset, ref.Offset+ref.Size))
}

// complete puts a chunk into the store of which all pieces have been read.
func (r *pieces) complete(ref chunk.Ref) {
	var p []byte
	registry, key := r.repository.registry, pieceKey{r.repository.Host, ref.Blob, ref.Offset}
	for ; key.offset < ref.Offset+ref.Size; key.offset += pieceSize {
		b, ok := registry.pieces.get(key)
		if !ok {
			return
		}
		p = append(p, b...)
	}
	if int64(len(p)) != ref.Size {
		return
	}
	if registry.cfg.Peers != nil {
		registry.cfg.Peers.Fetched(key.host, ref, p)
	}
	registry.report(r.blob.near.Put(r.ctx, ref, p))
}

// fetch gets the bytes from off to end from the upstream.
func (r *pieces) fetch(off, end int64) (p []byte, err error) {
	for _, as := range r.repository.identities() {
		up, err := r.repository.registry.cfg.Upstream(r.repository.Repository, as.Authorization())
		if err != nil {
			return nil, err
		}
		p, err = fetchRange(r.ctx, up, r.blob.Digest(), off, end)
		r.repository.heed(as, err, up)
		if !errors.Is(err, chunk.ErrDenied) {
			return p, err
		}
	}
	return p, err
}

// fetchRange gets part of a blob in one request.
func fetchRange(ctx context.Context, up Upstream, d digest.Digest, off, end int64) ([]byte, error) {
	asked := fmt.Sprintf("bytes=%d-%d", off, end-1)
	resp, err := up.Get(ctx, "blobs/"+string(d), nil, http.Header{"Range": {asked}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return nil, upstream.ErrNoRanges
	}
	var first, last int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &first, &last); err != nil || first != off || last != end-1 {
		return nil, fmt.Errorf("%s was asked for, %q is the answer", asked, resp.Header.Get("Content-Range"))
	}
	p := make([]byte, end-off)
	if _, err := io.ReadFull(resp.Body, p); err != nil {
		return nil, fmt.Errorf("%s: %w", asked, err)
	}
	return p, nil
}

// hosts are some of which something is remembered, for as long as they are not too
// many. The zero value is ready to use.
type hosts struct {
	mu  sync.Mutex
	all map[string]bool
}

const maxHosts = 256

func (h *hosts) add(host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil || len(h.all) >= maxHosts {
		h.all = make(map[string]bool)
	}
	h.all[host] = true
}

func (h *hosts) has(host string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[host]
}

// pieceCache keeps the pieces that were used last. The zero value is ready to use.
type pieceCache struct {
	mu    sync.Mutex
	all   map[pieceKey]*linked.Element
	order linked.List // of *piece, the one that was used last is the first
	size  int
}

// pieceKey names a piece as a host has sent it.
type pieceKey struct {
	host   string
	blob   digest.Digest
	offset int64
}

type piece struct {
	key   pieceKey
	bytes []byte
}

func (c *pieceCache) get(k pieceKey) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.all[k]
	if e == nil {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*piece).bytes, true
}

func (c *pieceCache) put(k pieceKey, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all[k] != nil {
		return
	}
	if c.all == nil {
		c.all = make(map[pieceKey]*linked.Element)
	}
	c.all[k] = c.order.PushFront(&piece{k, p})
	for c.size += len(p); c.size > keptPieces; {
		last := c.order.Remove(c.order.Back()).(*piece)
		delete(c.all, last.key)
		c.size -= len(last.bytes)
	}
}
