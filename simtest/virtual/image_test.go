package virtual

import (
	"math/rand/v2"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
)

const mib = 1 << 20

// image is blobs of bytes that are made when they are asked for.
type image struct {
	blobs []blob
	byID  map[digest.Digest]blob
	size  int64
}

// blob is a blob of an image.
type blob struct {
	*chunk.Map
	index int
	first int // chunk of the image
}

const distinct = 1 << 16 // chunks that differ from each other

var noise = sync.OnceValue(func() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, chunk.Size+distinct)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
})

// piece returns the bytes of a chunk of an image. Nobody writes to them.
func piece(n int, size int64) []byte {
	const stride = 61 // coprime to distinct: each chunk begins elsewhere
	return noise()[n*stride%distinct:][:size]
}

// newImage returns an image of blobs of these sizes.
func newImage(sizes ...int64) *image {
	img := &image{byID: make(map[digest.Digest]blob)}
	first := 0
	for i, size := range sizes {
		h := digest.SHA256.Digester()
		for off := int64(0); off < size; off += chunk.Size {
			h.Hash().Write(piece(first+int(off/chunk.Size), min(chunk.Size, size-off)))
		}
		m, err := chunk.Grid(h.Digest(), size)
		if err != nil {
			panic(err)
		}
		b := blob{m, i, first}
		img.blobs = append(img.blobs, b)
		img.byID[m.Blob()] = b
		img.size += size
		first += m.Len()
	}
	return img
}

// bytes returns a chunk. Nobody writes to it.
func (img *image) bytes(ref chunk.Ref) []byte {
	return piece(img.byID[ref.Blob].first+ref.Index(), ref.Size)
}

// stripes returns how many stripes the image has in a zone of so many members.
func (img *image) stripes(members int) (n int) {
	for _, b := range img.blobs {
		size := decide.StripeSize(b.Size(), members)
		n += int((b.Size() + size - 1) / size)
	}
	return n
}
