package lazy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
)

// kindOpening is what was read of a layer to open it, by whose layer it is and what was
// said of it. It is kept for a node that is started again while the registry is away:
// otherwise contents would be there that no table leads to.
const kindOpening Kind = "opening"

// maxOpening bounds what is kept of one layer, in bytes.
const maxOpening = 64 << 20

// opening is a layer's bytes for who opens it: those that were read to open it before, and
// the others from where they are. It may be used by several goroutines.
type opening struct {
	from io.ReaderAt
	size int64  // of the layer
	kept []span // by offset, and then by length

	mu   sync.Mutex
	read []span // from elsewhere
	held int    // bytes of kept and read
}

// span is a part of a layer.
type span struct {
	offset int64
	bytes  []byte
}

// ReadAt implements [io.ReaderAt].
func (o *opening) ReadAt(p []byte, off int64) (int, error) {
	want := p[:max(0, min(int64(len(p)), o.size-off))]
	if i := sort.Search(len(o.kept), func(i int) bool { return o.kept[i].offset > off }); i > 0 && len(want) > 0 {
		if s := o.kept[i-1]; off+int64(len(want)) <= s.offset+int64(len(s.bytes)) {
			n := copy(want, s.bytes[off-s.offset:])
			if n < len(p) {
				return n, io.EOF
			}
			return n, nil
		}
	}
	n, err := o.from.ReadAt(p, off)
	if n > 0 {
		o.note(span{off, p[:n]})
	}
	return n, err
}

// Expect implements [toc.Expecter].
func (o *opening) Expect(start, end int64) {
	if len(o.kept) == 0 {
		toc.Expect(o.from, start, end)
	}
}

// note takes note of what was read, while it is not too much.
func (o *opening) note(s span) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held += len(s.bytes); o.held <= maxOpening {
		o.read = append(o.read, span{s.offset, slices.Clone(s.bytes)})
	}
}

// opened keeps what was read to open a layer, if that was more than is kept.
func (o *opening) opened(ctx context.Context, derived *Derived, key digest.Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.read) == 0 || o.held > maxOpening {
		return
	}
	var b []byte
	for _, s := range slices.Concat(o.kept, o.read) {
		b = binary.AppendUvarint(b, uint64(s.offset))
		b = binary.AppendUvarint(b, uint64(len(s.bytes)))
		b = append(b, s.bytes...)
	}
	derived.Put(ctx, kindOpening, key, b)
}

// openingOf returns a layer's bytes for who opens it.
func openingOf(ctx context.Context, derived *Derived, key digest.Digest, from io.ReaderAt, size int64) *opening {
	o := &opening{from: from, size: size}
	if p, err := derived.Get(ctx, kindOpening, key); err == nil {
		if o.kept, err = parseSpans(p); err != nil {
			derived.report(fmt.Errorf("%s of %s: %w", kindOpening, key, err))
		}
		for _, s := range o.kept {
			o.held += len(s.bytes)
		}
	}
	return o
}

func parseSpans(p []byte) (all []span, err error) {
	for r := bytes.NewReader(p); r.Len() > 0; {
		offset, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, err
		}
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, err
		}
		if offset >= 1<<62 || n == 0 || n > uint64(r.Len()) {
			return nil, fmt.Errorf("%w: %d bytes at %d", toc.ErrMalformed, n, offset)
		}
		s := span{int64(offset), make([]byte, n)}
		if _, err := io.ReadFull(r, s.bytes); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(x, y span) int {
		return cmp.Or(cmp.Compare(x.offset, y.offset), cmp.Compare(len(x.bytes), len(y.bytes)))
	})
	return all, nil
}
