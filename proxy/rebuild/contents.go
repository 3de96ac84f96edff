package rebuild

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/gzip"
)

// read returns the bytes of chunks, given by their numbers in ascending order, one after the other. A
// layer is inflated from the last place before each chunk where that can start, or on from the one before
// it, whichever is nearer: at most a span more than the chunk. What is asked for in order is so inflated once, but for a
// span at the beginning of each request, though nothing is remembered from one to the next.
func (m *made) read(layer io.ReaderAt, chunks []int) ([]byte, error) {
	opened, err := gzip.Open(layer, ocispec.Descriptor{Size: m.index.Size}, m.index, nil)
	if err != nil || len(chunks) == 0 {
		return nil, err
	}
	size := int64(0)
	for _, i := range chunks {
		size += m.chunks.Chunks[i].Size
	}
	last := m.chunks.Chunks[chunks[len(chunks)-1]]
	t := tape{from: opened.Inflater, index: m.index, end: last.Offset + last.Size}
	defer t.close()
	all := make([]byte, size)
	for rest, k := all, 0; k < len(chunks); k++ {
		c := &m.chunks.Chunks[chunks[k]]
		p := rest[:c.Size]
		if err := t.read(p, c.Offset); err != nil {
			return nil, fmt.Errorf("chunk %d: %w", chunks[k], err)
		}
		if !c.Fits(p) {
			return nil, fmt.Errorf("chunk %d: %w", chunks[k], errOther)
		}
		rest = rest[c.Size:]
	}
	return all, nil
}

// errOther says that a layer is not what was made of it.
var errOther = errors.New("it is not what the offer says")

// tape is a tar that is read forwards.
type tape struct {
	from  toc.Inflater
	index *gzip.Index
	end   int64 // up to which it will be read
	in    io.ReadCloser
	pos   int64
}

// read reads all of p at a place that is not before the last one's end.
func (t *tape) read(p []byte, at int64) (err error) {
	if t.in == nil || pointBefore(t.index, at) > t.pos {
		t.close()
		if t.in, err = t.from.Inflate(toc.Extent{Inner: at, Size: t.end - at}, 0); err != nil {
			return err
		}
		t.pos = at
	}
	if _, err := io.CopyN(io.Discard, t.in, at-t.pos); err != nil {
		return err
	}
	n, err := io.ReadFull(t.in, p)
	t.pos = at + int64(n)
	return err
}

func (t *tape) close() {
	if t.in != nil {
		t.in.Close()
	}
	t.in = nil
}

// pointBefore returns the last byte of the tar, up to one at a place, from which on it can be inflated.
func pointBefore(x *gzip.Index, at int64) int64 {
	return x.Points[sort.Search(len(x.Points), func(i int) bool { return x.Points[i].Out > at })-1].Out
}

// packer compresses what is sent. It holds some 10 MB for each that is used at once.
var packer = sync.OnceValue(func() *zstd.Encoder {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(atOnce))
	if err != nil {
		panic(err) // the options are right
	}
	return z
})
