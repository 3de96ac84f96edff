package parent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

const (
	mapPart    = 256              // digests that are asked for at a time, a quarter of a GiB
	maxMapText = 64 << 10         // bytes of such a part: 256 digests as JSON
	mapsKnown  = 64               // blobs of which parts of the map are remembered
	mapAgain   = 10 * time.Second // after a parent had none
	chunksAt   = 4                // of a run that are asked for at a time
)

// knownMaps are those that a parent has given. The zero value is ready to use.
type knownMaps struct {
	mu    sync.Mutex
	blobs map[blob]*blobMap
}

// blobMap is what is known of a blob's map.
type blobMap struct {
	mu    sync.Mutex // held while a part is asked for, which all who want it wait for
	parts map[int][]digest.Digest
	none  time.Time // until when it is not asked for again
}

func (ms *knownMaps) of(k blob) *blobMap {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.blobs[k]
	if m != nil {
		return m
	}
	for other := range ms.blobs {
		if len(ms.blobs) < mapsKnown {
			break
		}
		delete(ms.blobs, other)
	}
	if ms.blobs == nil {
		ms.blobs = make(map[blob]*blobMap)
	}
	m = &blobMap{parts: make(map[int][]digest.Digest)}
	ms.blobs[k] = m
	return m
}

// forget has the map not used for a while, and asked for again then.
func (m *blobMap) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.parts)
	m.none = time.Now().Add(mapAgain)
}

// rests reports whether the map is not to be asked for now.
func (m *blobMap) rests() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Before(m.none)
}

// learn takes the first part.
func (m *blobMap) learn(part []digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parts[0] = part
}

// mapOf returns which map a chunk is named by. Blobs of one chunk, which need none, have one in common, for
// the parent to be spared them for a while when there is one that it has not.
func (s source) mapOf(ref chunk.Ref) blob {
	if ref.Whole() {
		return blob{host: s.name.Host}
	}
	return blob{s.name.Host, ref.Blob}
}

// has reports whether the parent has all of a blob of that size in the repository, as it says by giving the
// blob's map: unlike the answer to HEAD, any cache on the way may have that. It is asked each time, for a map
// that is known is of the blob, and of no repository.
func (s source) has(ctx context.Context, d digest.Digest, size int64) bool {
	grid, err := chunk.Grid(d, size)
	if err != nil || !s.parent.gateway || !s.public {
		return false
	}
	first := grid.At(0)
	m := s.parent.known.of(s.mapOf(first))
	if m.rests() {
		return false
	}
	part, err := s.mapPart(ctx, first, 0)
	switch {
	case err == nil && !first.Whole():
		m.learn(part)
	case err != nil && ctx.Err() == nil:
		m.forget()
		if chunk.IsCorrupt(err) {
			_ = s.heed(err) // it is asked otherwise
		}
	}
	return err == nil
}

// named sets the digests of a run of chunks by the parent's map, which it has if it has all of the blob. The
// error is a [*chunk.CorruptError] if it gives something that is no map of the blob.
func (s source) named(ctx context.Context, refs []chunk.Ref) (all []chunk.Ref, err error) {
	m := s.parent.known.of(s.mapOf(refs[0]))
	m.mu.Lock()
	defer m.mu.Unlock()
	if one := refs[0]; one.Whole() {
		if one.Digest = one.Blob; one.Blob.Algorithm() != digest.SHA256 || time.Now().Before(m.none) {
			return nil, chunk.ErrNotFound
		}
		return []chunk.Ref{one}, nil
	}
	for _, ref := range refs {
		i := ref.Index()
		part, known := m.parts[i/mapPart]
		if !known {
			if time.Now().Before(m.none) {
				return nil, chunk.ErrNotFound
			}
			if part, err = s.mapPart(ctx, ref, i/mapPart*mapPart); err != nil {
				if ctx.Err() == nil {
					m.none = time.Now().Add(mapAgain)
				}
				return nil, err
			}
			m.parts[i/mapPart] = part
		}
		if i%mapPart >= len(part) {
			return nil, chunk.ErrNotFound
		}
		ref.Digest = part[i%mapPart]
		all = append(all, ref)
	}
	return all, nil
}

// mapPart asks for a part of a blob's map, from chunk first on.
func (s source) mapPart(ctx context.Context, of chunk.Ref, first int) ([]digest.Digest, error) {
	resp, err := s.up.Get(ctx, "_granary/map/"+string(of.Blob), url.Values{"first": {strconv.Itoa(first)}, "n": {strconv.Itoa(mapPart)}}, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxMapText+1))
	if err != nil {
		return nil, fmt.Errorf("%s: map of %s: %w", s.parent.origin, of.Blob, err)
	}
	return parseMapPart(text, of, first)
}

// parseMapPart reads a part of the map of a blob, from chunk first on. The error is a [*chunk.CorruptError].
func parseMapPart(text []byte, of chunk.Ref, first int) ([]digest.Digest, error) {
	wrong := func(format string, args ...any) error {
		return &chunk.CorruptError{Ref: of, Reason: "its map: " + fmt.Sprintf(format, args...)}
	}
	var part struct {
		Size      int64           `json:"size"`
		ChunkSize int64           `json:"chunkSize"`
		First     int             `json:"first"`
		Chunks    []digest.Digest `json:"chunks"`
	}
	if len(text) > maxMapText {
		return nil, wrong("more than %d bytes", maxMapText)
	}
	if err := json.Unmarshal(text, &part); err != nil {
		return nil, wrong("%v", err)
	}
	if part.Size != of.Total {
		return nil, errors.Join(wrong("it is of %d bytes, not %d", part.Size, of.Total), upstream.ErrOtherSize)
	}
	behind := (of.Total-1)/chunk.Size + 1 - int64(first) // chunks, with the first
	if part.ChunkSize != chunk.Size || part.First != first || int64(len(part.Chunks)) > min(mapPart, behind) {
		return nil, wrong("%d digests from chunk %d on, of chunks of %d bytes, are no part that was asked for", len(part.Chunks), part.First, part.ChunkSize)
	}
	for _, d := range part.Chunks {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return nil, wrong("what should be the digest of a chunk is none")
		}
	}
	return part.Chunks, nil
}

// byCID gets chunks of known digests, each at an address that never means anything else, so that any cache
// on the way may have it. It gives those that it gets in order, and stops at the first that it does not.
func (s source) byCID(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) (given int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type got struct {
		p   []byte
		err error
	}
	turns := make(chan chan got, chunksAt-1)
	go func() {
		defer close(turns)
		for _, ref := range refs {
			one := make(chan got, 1)
			select {
			case turns <- one:
			case <-ctx.Done():
				return
			}
			go func() {
				p, err := s.block(ctx, ref)
				one <- got{p, err}
			}()
		}
	}()
	for one := range turns {
		g := <-one
		if g.err != nil {
			return given, g.err
		}
		ref := refs[given]
		ref.Digest = "" // it is the parent's word that this is the blob's
		chunk.SetOrigin(ctx, s.parent.origin)
		if err := yield(ref, g.p); err != nil {
			return given, err
		}
		given++
	}
	return given, ctx.Err()
}

// block gets a chunk by its digest.
func (s source) block(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	c, err := blocks.CID(ref.Digest)
	if err != nil {
		return nil, err
	}
	ctx, _ = chunk.WithOrigin(ctx) // of its own: several are asked for at a time
	resp, err := s.parent.registry.Static().Get(ctx, "ipfs/"+c.String(), url.Values{"format": {"raw"}}, http.Header{"Accept": {"application/vnd.ipld.raw"}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	p := make([]byte, ref.Size+1)
	n, err := io.ReadFull(resp.Body, p)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && int64(n) == ref.Size:
		return p[:n], ref.Check(s.parent.origin, p[:n])
	case err == nil:
		return nil, &chunk.CorruptError{Source: s.parent.origin, Ref: ref, Reason: "more bytes arrive than belong to it"}
	}
	return nil, &upstream.NoAnswerError{Subject: s.parent.origin, Err: fmt.Errorf("a chunk ends after %d bytes of %d: %w", n, ref.Size, err)}
}
