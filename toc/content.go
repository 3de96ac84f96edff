package toc

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"
)

// Contents are contents that are kept by their digest.
//
// ReadAt reads n bytes at off of the content d, which is size bytes long, into p,
// n = min(len(p), size-off); [ErrNotKept] says that it is not there. Keep reads r to
// its end, and keeps what it gives if that ends with [io.EOF]: only then has it
// matched. It returns r's error; that something could not be kept is nobody's
// business here.
type Contents interface {
	ReadAt(d Digest, size int64, p []byte, off int64) (n int, err error)
	Keep(d Digest, size int64, r io.Reader) error
}

// A Fetcher is [Contents] that can get an extent from elsewhere, unchecked, before it
// is inflated from the layer. Any error says that it cannot.
type Fetcher interface {
	Fetch(e *Entry, x Extent) ([]byte, error)
}

// A Sharer is [Contents] that knows who gets an extent, from elsewhere or by inflating it,
// for others to wait for that.
//
// Begin is called before. It returns what is to be called after; or nil, once somebody
// else, who was getting the extent, has ended: then it is kept, unless they failed.
type Sharer interface {
	Begin(x Extent) (done func())
}

// A Composer is [Contents] that remembers which contents a larger one consists of, in
// order and without gaps, and finds it by its own digest from then on. That has been
// checked.
type Composer interface {
	Compose(d Digest, parts []Extent)
}

// ErrNotKept says that a content is not kept.
var ErrNotKept = errors.New("content is not kept")

// CorruptError says that an extent of a layer is not what its digest promises.
type CorruptError struct {
	Name   string // of the file
	Extent Extent
	Got    Digest // of what was read; none when that was too short
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("file %q: bytes %d to %d: corrupt: want %s, got %s", shorten(e.Name), e.Extent.Offset, e.Extent.Offset+e.Extent.Size, e.Extent.Digest, e.Got)
}

// Open returns the content of a regular file of a layer. Extents that have digests
// are given out only once they have matched, and are looked for in kept first and
// kept there, unless it is nil.
func Open(l *Layer, e *Entry, kept Contents) *Content {
	return &Content{layer: l, entry: e, kept: kept}
}

// Content is the content of a regular file. It may be used by several goroutines.
type Content struct {
	layer *Layer
	entry *Entry
	kept  Contents
}

// Size returns the content's length in bytes.
func (c *Content) Size() int64 { return c.entry.Size }

// Digest returns the content's digest, or none.
func (c *Content) Digest() Digest { return c.entry.Digest }

// Matched says that all of the content has been read and has matched its digest.
func (c *Content) Matched() {
	composer, ok := c.kept.(Composer)
	if !ok || len(c.entry.Extents) < 2 || !c.entry.Digest.Known() {
		return
	}
	end := int64(0)
	for _, x := range c.entry.Extents {
		if x.Offset != end || !x.Digest.Known() {
			return
		}
		end += x.Size
	}
	if end == c.entry.Size {
		composer.Compose(c.entry.Digest, c.entry.Extents)
	}
}

// Mismatch returns the error for a content that has another digest than it should.
func (c *Content) Mismatch(got Digest) error {
	return &CorruptError{Name: c.entry.Name, Extent: Extent{Size: c.entry.Size, Digest: c.entry.Digest}, Got: got}
}

// ReadAt implements [io.ReaderAt].
func (c *Content) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("file %q: read at %d", shorten(c.entry.Name), off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= c.entry.Size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), c.entry.Size-off)]
	if n, ok := c.whole(want, off); ok {
		return n, eofIf(n < len(p))
	}
	for n < len(want) {
		k, err := c.readOne(want[n:], off+int64(n))
		n += k
		if err != nil {
			return n, fmt.Errorf("file %q: read at %d: %w", shorten(c.entry.Name), off+int64(n), err)
		}
	}
	return n, eofIf(n < len(p))
}

func eofIf(short bool) error {
	if short {
		return io.EOF
	}
	return nil
}

// whole reads from what is kept of the whole file, if it has several extents.
func (c *Content) whole(p []byte, off int64) (n int, ok bool) {
	if c.kept == nil || len(c.entry.Extents) < 2 || !c.entry.Digest.Known() {
		return 0, false
	}
	n, err := c.kept.ReadAt(c.entry.Digest, c.entry.Size, p, off)
	return n, err == nil && n == len(p)
}

// readOne reads from the extent, or the hole, at off, up to its end at most.
func (c *Content) readOne(p []byte, off int64) (int, error) {
	all := c.entry.Extents
	i := sort.Search(len(all), func(i int) bool { return all[i].Offset+all[i].Size > off })
	if i == len(all) {
		clear(p)
		return len(p), nil
	}
	x := all[i]
	if off < x.Offset {
		p = p[:min(int64(len(p)), x.Offset-off)]
		clear(p)
		return len(p), nil
	}
	p = p[:min(int64(len(p)), x.Offset+x.Size-off)]
	if err := c.read(x, p, off-x.Offset); err != nil {
		return 0, err
	}
	return len(p), nil
}

// read reads all of p at off of an extent.
func (c *Content) read(x Extent, p []byte, off int64) error {
	if !x.Digest.Known() {
		r, err := c.layer.Inflate(x, off)
		if err != nil {
			return err
		}
		defer r.Close()
		return fill(r, p)
	}
	if c.kept != nil {
		n, err := c.kept.ReadAt(x.Digest, x.Size, p, off)
		if err == nil && n == len(p) {
			return nil
		}
	}
	return c.inflate(x, p, off)
}

// fill reads all of p, or returns why not: io.ErrUnexpectedEOF if there is less.
func fill(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// inflate reads all of an extent, for it is checked as a whole, and puts into p what
// it has at off. p is right only if the error is nil.
func (c *Content) inflate(x Extent, p []byte, off int64) error {
	if s, ok := c.kept.(Sharer); ok {
		done := s.Begin(x)
		if done != nil {
			defer done()
		} else if n, err := c.kept.ReadAt(x.Digest, x.Size, p, off); err == nil && n == len(p) {
			return nil
		}
	}
	if f, ok := c.kept.(Fetcher); ok {
		if b, err := f.Fetch(c.entry, x); err == nil && c.take(x, bytes.NewReader(b), p, off) == nil {
			return nil
		}
	}
	in, err := c.layer.Inflate(x, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	return c.take(x, in, p, off)
}

// take checks an extent that is read from in, keeps it, and puts into p what it has
// at off.
func (c *Content) take(x Extent, in io.Reader, p []byte, off int64) error {
	r := io.TeeReader(&checked{r: in, left: x.Size, sum: sha256.New(), name: c.entry.Name, extent: x}, &window{p: p, off: off})
	if c.kept == nil {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	return c.kept.Keep(x.Digest, x.Size, r)
}

// checked gives an extent's bytes, and their end only if they match the digest.
type checked struct {
	r    io.Reader
	left int64
	sum  interface {
		io.Writer
		Sum([]byte) []byte
	}
	name   string
	extent Extent
}

func (c *checked) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, c.end()
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	_, _ = c.sum.Write(p[:n]) // of a hash
	c.left -= int64(n)
	if err == io.EOF {
		err = nil
		if c.left > 0 {
			err = fmt.Errorf("%w: %w", &CorruptError{Name: c.name, Extent: c.extent}, io.ErrUnexpectedEOF)
		}
	}
	return n, err
}

func (c *checked) end() error {
	got := Digest(c.sum.Sum(nil))
	if got != c.extent.Digest {
		return &CorruptError{Name: c.name, Extent: c.extent, Got: got}
	}
	return io.EOF
}

// window takes of what is written to it the bytes at off.
type window struct {
	p   []byte
	off int64 // of the next byte that p takes, from what is written next
}

func (w *window) Write(q []byte) (int, error) {
	n := int64(len(q))
	if w.off < n {
		k := copy(w.p, q[w.off:])
		w.p, w.off = w.p[k:], w.off+int64(k)
	}
	w.off -= n
	if w.off < 0 {
		w.off = 0
	}
	return len(q), nil
}
