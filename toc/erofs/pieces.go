package erofs

import (
	"fmt"
	"io"
	"slices"

	"github.com/granary-oci/granary/toc"
)

const (
	pieceSize = 16 << 10
	maxRun    = 64   // pieces of one read: 1 MiB
	maxKept   = 1024 // pieces of a generation: 16 MiB
	planAhead = 64   // pieces that a reader is told of before they are read
)

// pieces reads a layer in aligned pieces. Those that were read last are kept: up to
// two generations, of which the older goes when the younger is full. What is used of
// the older does not move: each level of a tree goes through the image in order, and
// would push out what it needs next.
type pieces struct {
	r     io.ReaderAt
	size  int64
	young map[int64][]byte
	old   map[int64][]byte
	plan  []int64 // the pieces that will be wanted, ascending
	told  int     // how many of these the reader has been told of
}

// want says which pieces will be read next.
func (c *pieces) want(plan []int64) { c.plan, c.told = plan, 0 }

// tell tells the reader of pieces that are wanted soon, so that it need not be waited for
// at each.
func (c *pieces) tell(at int64) {
	next, _ := slices.BinarySearch(c.plan, at)
	if c.told > next+planAhead/2 {
		return
	}
	for c.told = max(c.told, next); c.told < min(next+planAhead, len(c.plan)); {
		first := c.plan[c.told]
		last := first
		for c.told++; c.told < len(c.plan) && c.plan[c.told] == last+1; c.told++ {
			last++
		}
		toc.Expect(c.r, first*pieceSize, min((last+1)*pieceSize, c.size))
	}
}

// read returns n bytes at off, which are in the layer.
func (c *pieces) read(off int64, n int) ([]byte, error) {
	p, err := c.piece(off / pieceSize)
	if err != nil {
		return nil, err
	}
	p = p[off%pieceSize:]
	if n <= len(p) {
		return p[:n:n], nil
	}
	whole := append(make([]byte, 0, n), p...)
	for len(whole) < n {
		p, err := c.piece((off + int64(len(whole))) / pieceSize)
		if err != nil {
			return nil, err
		}
		whole = append(whole, p[:min(len(p), n-len(whole))]...)
	}
	return whole, nil
}

func (c *pieces) piece(at int64) ([]byte, error) {
	if p, ok := c.young[at]; ok {
		return p, nil
	}
	if p, ok := c.old[at]; ok {
		return p, nil
	}
	c.tell(at)
	start := at * pieceSize
	run := make([]byte, min(c.run(at)*pieceSize, c.size-start))
	if n, err := c.r.ReadAt(run, start); n < len(run) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %d bytes at %d: %w", len(run), start, err)
	}
	for i := int64(0); i*pieceSize < int64(len(run)); i++ {
		c.keep(at+i, run[i*pieceSize:min((i+1)*pieceSize, int64(len(run)))])
	}
	return run[:min(pieceSize, len(run))], nil
}

// run returns how many pieces from at on are wanted, one after the other.
func (c *pieces) run(at int64) int64 {
	next, _ := slices.BinarySearch(c.plan, at+1)
	rest := c.plan[next:]
	n := int64(1)
	for ; n < maxRun && n <= int64(len(rest)) && rest[n-1] == at+n && !c.kept(at+n); n++ {
	}
	return n
}

func (c *pieces) kept(at int64) bool { return c.young[at] != nil || c.old[at] != nil }

func (c *pieces) keep(at int64, p []byte) {
	if c.young == nil || len(c.young) >= maxKept {
		c.old, c.young = c.young, make(map[int64][]byte)
	}
	c.young[at] = p
}
