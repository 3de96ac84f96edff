package rebuild

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// read returns the bytes of chunks, given by their numbers in ascending order, one after the other. A
// layer is inflated from the last place before each chunk where that can start, or on from the one before
// it, whichever is nearer: at most a span more than the chunk. What is asked for in order is so inflated once, but for a
// span at the beginning of each request, though nothing is remembered from one to the next.
func (c *contents) read(layer Layer, chunks []int) ([]byte, error) {
	if len(chunks) == 0 {
		return nil, nil
	}
	size := int64(0)
	for _, i := range chunks {
		size += c.chunks.Chunks[i].Size
	}
	t := tape{contents: c, layer: layer}
	defer t.close()
	all := make([]byte, size)
	for rest, k := all, 0; k < len(chunks); k++ {
		p := rest[:c.chunks.Chunks[chunks[k]].Size]
		if err := t.read(p, chunks[k]); err != nil {
			return nil, err
		}
		rest = rest[len(p):]
	}
	return all, nil
}

// errOther says that a layer is not what was made of it.
var errOther = errors.New("it is not what the offer says")

// tape is the tar of a layer, of which chunks are read, best in order.
type tape struct {
	*contents
	layer Layer
	in    io.ReadCloser
	pos   int64
}

// read reads a chunk into p, which has its size.
func (t *tape) read(p []byte, i int) (err error) {
	c := &t.chunks.Chunks[i]
	if t.in == nil || c.Offset < t.pos || t.before(c.Offset) > t.pos {
		t.close()
		if t.in, err = t.open(t.layer, c.Offset, t.chunks.Size()); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		t.pos = c.Offset
	}
	n, err := io.CopyN(io.Discard, t.in, c.Offset-t.pos)
	if t.pos += n; err != nil {
		return fmt.Errorf("chunk %d: %w", i, err)
	}
	got, err := io.ReadFull(t.in, p)
	if t.pos += int64(got); err != nil {
		return fmt.Errorf("chunk %d: %w", i, err)
	}
	if !c.Fits(p) {
		return fmt.Errorf("chunk %d: %w", i, errOther)
	}
	return nil
}

func (t *tape) close() {
	if t.in != nil {
		t.in.Close()
	}
	t.in = nil
}

// compress compresses contents with a dictionary of these words, of which there may be none.
func compress(p, words []byte) ([]byte, error) {
	if len(words) == 0 {
		return packer().EncodeAll(p, nil), nil
	}
	// The default level finds little in a dictionary of some megabytes.
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithWindowSize(2*MaxContents), zstd.WithEncoderDictRaw(dictionaryID(words), words))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return z.EncodeAll(p, nil), nil
}

// packer compresses what is sent. It holds some 10 MB for each that is used at once.
var packer = sync.OnceValue(func() *zstd.Encoder {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(atOnce))
	if err != nil {
		panic(err) // the options are right
	}
	return z
})
