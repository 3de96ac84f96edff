package squashfs

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/granary-oci/granary/toc"
)

// keptBlocks are kept unpacked, of each layer, for a file is read in smaller pieces
// than blocks, and a fragment holds the ends of many.
const keptBlocks = 8

// inflater unpacks blocks of a layer.
type inflater struct {
	r      io.ReaderAt
	limit  int64 // bytes of a block
	unpack unpacker
	kept   *keeper
}

func newInflater(r io.ReaderAt, limit int64, unpack unpacker) inflater {
	return inflater{r, limit, unpack, &keeper{}}
}

// On implements [toc.Inflater].
func (f inflater) On(r io.ReaderAt) toc.Inflater {
	f.r = r
	return f
}

// Inflate implements [toc.Inflater].
func (f inflater) Inflate(x toc.Extent, off int64) (io.ReadCloser, error) {
	if off < 0 || off > x.Size || x.Start < 0 || x.Start > math.MaxInt64-x.Size || x.Inner < 0 {
		return nil, fmt.Errorf("squashfs: %w: byte %d of an extent of %d at %d", toc.ErrMalformed, off, x.Size, x.Start)
	}
	n := x.Size - off
	if stored(x) {
		return io.NopCloser(toc.Exactly(io.NewSectionReader(f.r, x.Start+off, n), n)), nil
	}
	p, err := f.block(x.Start, x.End)
	if err != nil {
		return nil, fmt.Errorf("squashfs: block at %d: %w", x.Start, err)
	}
	p = p[min(x.Inner, int64(len(p))):]
	p = p[min(off, int64(len(p))):]
	p = p[:min(n, int64(len(p)))]
	return io.NopCloser(toc.Exactly(bytes.NewReader(p), n)), nil
}

// block returns what is packed in the layer's bytes from start to end.
func (f inflater) block(start, end int64) ([]byte, error) {
	if end < start || end-start > f.limit {
		return nil, fmt.Errorf("%w: it has %d bytes", toc.ErrMalformed, end-start)
	}
	if p := f.kept.get(start, end); p != nil {
		return p, nil
	}
	packed, err := readAt(f.r, start, int(end-start))
	if err != nil {
		return nil, err
	}
	p, err := f.unpack(packed, int(f.limit))
	if err != nil {
		return nil, err
	}
	f.kept.put(start, end, p)
	return p, nil
}

// keeper keeps the blocks that were unpacked last.
type keeper struct {
	mu   sync.Mutex
	all  [keptBlocks]kept
	next int // of all, in turn
}

type kept struct {
	start, end int64
	p          []byte
}

func (k *keeper) get(start, end int64) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.all {
		if b.start == start && b.end == end {
			return b.p
		}
	}
	return nil
}

func (k *keeper) put(start, end int64, p []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all[k.next] = kept{start, end, p}
	k.next = (k.next + 1) % keptBlocks
}
