package rebuild

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/klauspost/compress/gzip"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

// errEnough ends the reading of an older layer when nothing is missing any more.
var errEnough = errors.New("all chunks are there")

// mosaic is a tar in a file, whose chunks come in any order. Several goroutines may put some.
type mosaic struct {
	m *cdc.Map
	f *os.File

	mu      sync.Mutex
	wanted  map[toc.Digest][]int // the numbers of chunks that are not there, by what they are
	missing int64                // bytes of these, each counted once
}

// newMosaic makes f the beginning of the tar that m is of: what is inline is there. The error wraps
// [toc.ErrMalformed] if m says of one digest that it is of chunks of two sizes.
func newMosaic(m *cdc.Map, f *os.File) (*mosaic, error) {
	t := &mosaic{m: m, f: f, wanted: make(map[toc.Digest][]int)}
	if err := f.Truncate(m.Size()); err != nil {
		return nil, err
	}
	for i := range m.Chunks {
		c := &m.Chunks[i]
		if c.Inline != nil {
			if _, err := f.WriteAt(c.Inline, c.Offset); err != nil {
				return nil, err
			}
			continue
		}
		switch places := t.wanted[c.Digest]; {
		case places == nil:
			t.missing += c.Size
		case m.Chunks[places[0]].Size != c.Size:
			return nil, fmt.Errorf("%w: its map has chunks %d and %d with one digest and two sizes", toc.ErrMalformed, places[0], i)
		}
		t.wanted[c.Digest] = append(t.wanted[c.Digest], i)
	}
	return t, nil
}

// left returns how many bytes are missing.
func (t *mosaic) left() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.missing
}

// absent returns the numbers of chunks that are missing, of equal ones the first, in order.
func (t *mosaic) absent() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []int
	for places := range maps.Values(t.wanted) {
		all = append(all, places[0])
	}
	slices.Sort(all)
	return all
}

// put puts p, which has the digest, wherever it is wanted.
func (t *mosaic) put(d toc.Digest, p []byte) error {
	t.mu.Lock()
	places := t.wanted[d]
	if places == nil || t.m.Chunks[places[0]].Size != int64(len(p)) {
		t.mu.Unlock()
		return nil
	}
	delete(t.wanted, d)
	t.missing -= int64(len(p))
	t.mu.Unlock()
	for _, i := range places {
		if _, err := t.f.WriteAt(p, t.m.Chunks[i].Offset); err != nil {
			return &diskError{err}
		}
	}
	return nil
}

// diskError says that what was to be put cannot be.
type diskError struct{ err error }

func (e *diskError) Error() string { return e.err.Error() }
func (e *diskError) Unwrap() error { return e.err }

// output remembers that its file could not be written.
type output struct {
	f   *os.File
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.f.Write(p)
	if err != nil {
		o.err = err
	}
	return n, err
}

// sift takes what is wanted from an older layer in gzip, of whose tar it reads most bytes at the most, and gives all chunks to rest.
func (t *mosaic) sift(ctx context.Context, layer io.Reader, most int64, rest func(c cdc.Chunk, p []byte) error) error {
	if t.left() == 0 {
		return nil
	}
	z, err := gzip.NewReader(bufio.NewReaderSize(layer, 256<<10))
	if err != nil {
		return fmt.Errorf("it is no gzip: %w", err)
	}
	defer z.Close()
	err = cdc.Walk(ctx, io.LimitReader(z, most), func(c cdc.Chunk, p []byte) error {
		if err := rest(c, p); err != nil || c.Inline != nil {
			return err
		}
		if err := t.put(c.Digest, p); err != nil {
			return err
		}
		if t.left() == 0 {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}
