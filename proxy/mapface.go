package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
)

const (
	// MaxMapPart is how many digests a part of a map has at the most.
	MaxMapPart = 1024
	// hashedInTurn is after how many chunks others get their turn to have some hashed.
	hashedInTurn = 32
)

// BlobMap is a part of a blob's map: what its chunks are.
type BlobMap struct {
	Blob      digest.Digest   `json:"blob"`
	Size      int64           `json:"size"`      // of the blob, in bytes
	ChunkSize int64           `json:"chunkSize"` // of all chunks but the last
	First     int             `json:"first"`     // which chunk the first digest is of
	Chunks    []digest.Digest `json:"chunks"`    // SHA-256
}

// blobMap answers a request for the digests of a blob's chunks, from chunk first on and n at the
// most, as JSON. By these the chunks have names of their own, such as CIDs. Only who has all of a blob
// knows them.
func (h *Handler) blobMap(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) error {
	first, err := count(r, "first", 0)
	if err != nil {
		return err
	}
	n, err := count(r, "n", MaxMapPart)
	if err != nil {
		return err
	}
	size, err := p.Stat(r.Context(), req.Digest)
	if err != nil {
		return err
	}
	m, err := chunk.Grid(req.Digest, size)
	if err != nil {
		return err
	}
	if first > m.Len() {
		return errQuery(fmt.Sprintf("first is %d, and the blob has %d chunks", first, m.Len()))
	}
	part := BlobMap{Blob: req.Digest, Size: size, ChunkSize: chunk.Size, First: first, Chunks: []digest.Digest{}}
	for end := min(first+min(n, MaxMapPart), m.Len()); first < end; first += hashedInTurn {
		all, err := h.registry.Digests(r.Context(), p.Host, req.Digest, size, first, min(hashedInTurn, end-first))
		if errors.Is(err, chunk.ErrNotFound) {
			return fmt.Errorf("blob %s: not all of it is stored here and has matched its digest, so that its map is not known: %w", req.Digest, err)
		}
		if err != nil {
			return err
		}
		for i := range all.Len() {
			h.registry.told.add(m.At(first+i), all.At(i))
			part.Chunks = append(part.Chunks, all.At(i))
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodHead {
		return nil
	}
	_ = json.NewEncoder(w).Encode(part) // an error is that the client has gone
	return nil
}

// count returns a number that a request's parameter gives, or otherwise if there is none.
func count(r *http.Request, name string, otherwise int) (int, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return 0, errQuery(fmt.Sprintf("%s is not a number of chunks", name))
	}
	return n, nil
}
