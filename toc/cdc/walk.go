package cdc

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/granary-oci/granary/toc/tarhead"
)

const (
	window     = 1 << 20 // bytes that can be looked at ahead
	maxSpecial = window  // bytes of an entry that is about the next one
)

// Walk cuts what r has, to its end, and gives yield each chunk with its bytes, which, with
// [Chunk.Inline], are its own until it returns. It takes about 2 MiB of memory, whatever r has.
// The error is one of r or of ctx, wrapped, or yield's.
func Walk(ctx context.Context, r io.Reader, yield func(Chunk, []byte) error) error {
	return protocol.Walk(ctx, r, yield)
}

// Walk is [Walk] with the sizes of c.
func (c *Cutter) Walk(ctx context.Context, r io.Reader, yield func(Chunk, []byte) error) error {
	w := walker{ctx: ctx, cutter: c, tape: bufio.NewReaderSize(r, max(window, c.max)), yield: yield}
	if err := w.walk(); err != nil {
		return fmt.Errorf("content map: at byte %d: %w", w.pos, err)
	}
	return nil
}

// walker cuts a tar that passes by.
type walker struct {
	ctx    context.Context
	cutter *Cutter
	tape   *bufio.Reader
	yield  func(Chunk, []byte) error

	pos     int64  // behind the last chunk
	between []byte // what was passed over since the last content; less than the largest chunk
	inlined int    // bytes that were given inline
	said    *int64 // what a PAX header says of the next entry's size, if one does
}

// walk goes from header to header. What is no header, in a tar that is damaged or no tar at
// all, ends this for good: looking for another one would cut the same bytes differently
// with each damage.
func (w *walker) walk() error {
	for {
		p, err := w.peek(tarhead.BlockSize)
		if err != nil {
			return err
		}
		size, ok := storedSize(p)
		if !ok {
			return w.content(math.MaxInt64)
		}
		if err := w.entry([tarhead.BlockSize]byte(p), size); err != nil {
			return err
		}
	}
}

// storedSize returns what a header says of its entry's size. It is not ok if p is none. A
// block of zeros, with which a tar ends, is a header of nothing: there may be more of them,
// and other entries, which are passed over and cut like all.
func storedSize(p []byte) (int64, bool) {
	if len(p) < tarhead.BlockSize {
		return 0, false
	}
	b := [tarhead.BlockSize]byte(p)
	if b == [tarhead.BlockSize]byte{} {
		return 0, true
	}
	size, ok := tarhead.Number(b[124:136])
	return size, ok && size >= 0 && tarhead.Valid(&b)
}

// entry passes over an entry: what describes it, its content, and what fills up the last
// block. Where the tar ends in its midst is no error.
func (w *walker) entry(b [tarhead.BlockSize]byte, size int64) error {
	flag := b[156]
	special := flag == 'x' || flag == 'g' || flag == 'L' || flag == 'K'
	if err := w.pass(tarhead.BlockSize); err != nil {
		return err
	}
	switch {
	case special && size <= maxSpecial:
		return w.special(flag, size)
	case special:
		return w.content(math.MaxInt64)
	case '1' <= flag && flag <= '6':
		size = 0 // of a link or a device it means nothing
	case w.said != nil:
		size = *w.said
	}
	w.said = nil
	if flag == 'S' && b[482] != 0 {
		if err := w.sparse(); err != nil {
			return err
		}
	}
	if err := w.content(size); err != nil {
		return err
	}
	return w.pass(-size & (tarhead.BlockSize - 1))
}

// special passes over an entry that is about the next one.
func (w *walker) special(flag byte, size int64) error {
	p, err := w.peek(int(size))
	if err != nil {
		return err
	}
	for s := string(p); flag == 'x' && s != ""; {
		key, value, rest, ok := tarhead.CutRecord(s)
		if !ok {
			break // who reads the entry itself will find it malformed
		}
		if n, err := strconv.ParseInt(value, 10, 64); key == "size" && err == nil && n >= 0 {
			w.said = &n
		}
		s = rest
	}
	return w.pass(size + -size&(tarhead.BlockSize-1))
}

// sparse passes over the blocks that go on with the map of a sparse file (GNU tar, "Old GNU
// Format"). Each says whether it is the last.
func (w *walker) sparse() error {
	for {
		p, err := w.peek(tarhead.BlockSize)
		if err != nil || len(p) < tarhead.BlockSize {
			return err
		}
		last := p[504] == 0
		if err := w.pass(tarhead.BlockSize); err != nil || last {
			return err
		}
	}
}

// pass adds the next n bytes, as far as there are any, to what is between contents.
func (w *walker) pass(n int64) error {
	for n > 0 {
		p, err := w.peek(int(min(n, int64(w.cutter.max-len(w.between)))))
		if err != nil || len(p) == 0 {
			return err
		}
		w.between = append(w.between, p...)
		n -= int64(len(p))
		w.tape.Discard(len(p)) //nolint:errcheck // it is in the buffer
		if len(w.between) == w.cutter.max {
			if err := w.cutBetween(); err != nil {
				return err
			}
		}
	}
	return nil
}

// content cuts the next n bytes, as far as there are any, apart from what is before and
// after them.
func (w *walker) content(n int64) error {
	whole := n <= int64(w.cutter.normal)
	if n > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	for n > 0 {
		p, err := w.peek(int(min(n, int64(w.cutter.max))))
		if err != nil || len(p) == 0 {
			return err
		}
		if !whole {
			p = p[:w.cutter.Cut(p)]
		}
		if err := w.emit(p); err != nil {
			return err
		}
		n -= int64(len(p))
		w.tape.Discard(len(p)) //nolint:errcheck // it is in the buffer
	}
	return nil
}

// flush gives out all that is between two contents.
func (w *walker) flush() error {
	if n := len(w.between); n > 0 && n <= MaxInline && w.inlined+n <= maxInlined {
		w.inlined += n
		c := Chunk{Offset: w.pos, Size: int64(n), Inline: w.between}
		w.pos += c.Size
		w.between = w.between[:0]
		return w.yield(c, c.Inline)
	}
	for len(w.between) > 0 {
		if err := w.cutBetween(); err != nil {
			return err
		}
	}
	return nil
}

// cutBetween cuts one chunk of what is between contents.
func (w *walker) cutBetween() error {
	n := len(w.between)
	if n > w.cutter.normal {
		n = w.cutter.Cut(w.between)
	}
	if err := w.emit(w.between[:n]); err != nil {
		return err
	}
	w.between = append(w.between[:0], w.between[n:]...)
	return nil
}

func (w *walker) emit(p []byte) error {
	c := Chunk{Offset: w.pos, Size: int64(len(p)), Digest: sha256.Sum256(p)}
	w.pos += c.Size
	return w.yield(c, p)
}

// peek returns the next n bytes, or as many as there are.
func (w *walker) peek(n int) ([]byte, error) {
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	p, err := w.tape.Peek(n)
	if err == io.EOF {
		err = nil
	}
	return p, err
}
