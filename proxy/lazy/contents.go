package lazy

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/toc"
)

// Contents keeps contents of files by their digest. That a layer's table names a
// digest opens nothing, for anyone may make a layer that names the digest of what
// they cannot read: a content is for those alone who may read a layer that it was
// once read from, its origin.
type Contents struct {
	Store   Store
	Records Records
	Report  func(error) // is told of what could not be kept; nil ignores it
}

// Origin is a layer in a repository.
type Origin struct {
	Repository ref.Repository
	Layer      digest.Digest
}

// String returns the origin as HOST/NAME@DIGEST.
func (o Origin) String() string { return o.Repository.String() + "@" + string(o.Layer) }

func parseOrigin(s string) (o Origin, ok bool) {
	repository, d, _ := strings.Cut(s, "@")
	host, name, ok := strings.Cut(repository, "/")
	o = Origin{ref.Repository{Host: host, Name: name}, digest.Digest(d)}
	return o, ok && o.Layer.Validate() == nil
}

// maxOrigins is how many of a content's origins a reader is tried for.
const maxOrigins = 8

// For returns the contents as a reader of origin sees them, for as long as ctx
// lives. mayRead reports whether the reader may read another layer too.
func (c *Contents) For(ctx context.Context, origin Origin, mayRead func(Origin) bool) Readable {
	if c.Store == nil {
		return nil
	}
	return &readable{c, ctx, origin, mayRead}
}

// Readable are contents as somebody may read them.
type Readable interface {
	toc.Contents
	toc.Composer
	// Has reports whether all of a content of a size is kept, whoever may read it.
	Has(content toc.Digest, size int64) bool
	// May reports whether a content that is kept may be read.
	May(content toc.Digest) bool
}

// readable implements [Readable].
type readable struct {
	*Contents
	ctx     context.Context // of the reader
	origin  Origin
	mayRead func(Origin) bool
}

// ReadAt implements [toc.Contents].
func (c *readable) ReadAt(content toc.Digest, size int64, p []byte, off int64) (n int, err error) {
	p = p[:max(0, min(int64(len(p)), size-off))]
	parts := []toc.Extent{{Size: size, Digest: content}}
	n, err = c.read(parts, p, off)
	if err != nil {
		if parts, err = c.partsOf(content, size); err == nil {
			n, err = c.read(parts, p, off)
		}
	}
	if err != nil || !c.allowed(content.OCI()) {
		return 0, toc.ErrNotKept
	}
	return n, nil
}

// read reads from what is kept of contents that follow each other.
func (c *readable) read(parts []toc.Extent, p []byte, off int64) (n int, err error) {
	i := sort.Search(len(parts), func(i int) bool { return parts[i].Offset+parts[i].Size > off })
	for ; n < len(p) && i < len(parts); i++ {
		part := parts[i]
		at := off + int64(n) - part.Offset
		k, err := c.readOne(part.Digest, part.Size, p[n:min(int64(len(p)), int64(n)+part.Size-at)], at)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readOne reads all of p at off of what is kept of a content.
func (c *readable) readOne(content toc.Digest, size int64, p []byte, off int64) (n int, err error) {
	m, err := chunk.Grid(content.OCI(), size)
	if err != nil {
		return 0, err
	}
	if m.Len() > 1 && !c.Store.Proven(m.Blob()) {
		return 0, toc.ErrNotKept
	}
	for n < len(p) {
		r := m.At(m.Find(off + int64(n)))
		at := off + int64(n) - r.Offset
		k := min(len(p)-n, int(r.Size-at))
		if c.Store.ReadAt(c.ctx, r, p[n:n+k], at) != nil {
			return n, toc.ErrNotKept
		}
		n += k
	}
	return n, nil
}

// Has reports whether all of a content of a size is kept, whoever may read it.
func (c *Contents) Has(content toc.Digest, size int64) bool {
	m, err := chunk.Grid(content.OCI(), size)
	if err != nil || m.Len() > 1 && !c.Store.Proven(m.Blob()) {
		return false
	}
	for i := range m.Len() {
		if !c.Store.Has(m.At(i)) {
			return false
		}
	}
	return true
}

// May implements [Readable].
func (c *readable) May(content toc.Digest) bool { return c.allowed(content.OCI()) }

// allowed reports whether the reader may read a layer that has the content.
func (c *readable) allowed(content digest.Digest) bool {
	own := c.origin.String()
	origins := c.Records.Origins(content)
	for _, o := range origins {
		if o == own {
			return true
		}
	}
	for i, s := range origins {
		o, ok := parseOrigin(s)
		if i == maxOrigins {
			break
		}
		if ok && c.mayRead(o) {
			return true
		}
	}
	return false
}

// Keep implements [toc.Contents].
func (c *readable) Keep(content toc.Digest, size int64, r io.Reader) error {
	if err := keep(c.ctx, c.Store, content.OCI(), size, r); err != nil {
		return fmt.Errorf("content %s: %w", content, err)
	}
	c.addOrigin(content)
	return nil
}

// addOrigin records that the content was read where the reader reads. If it cannot be,
// the content is read there once more.
func (c *readable) addOrigin(content toc.Digest) {
	if err := c.Records.AddOrigin(content.OCI(), c.origin.String()); err != nil && c.Report != nil {
		c.Report(fmt.Errorf("content %s: %w", content, err))
	}
}

// Compose implements [toc.Composer].
func (c *readable) Compose(content toc.Digest, parts []toc.Extent) {
	var p []byte
	for _, x := range parts {
		p = append(p, x.Digest[:]...)
		p = binary.BigEndian.AppendUint64(p, uint64(x.Size))
	}
	kept := Derived{Store: c.Store, Records: c.Records, Report: c.Report}
	kept.Put(c.ctx, kindParts, content.OCI(), p)
	c.addOrigin(content)
}

// partsOf returns the contents that a content consists of, if that is known.
func (c *readable) partsOf(content toc.Digest, size int64) (parts []toc.Extent, err error) {
	kept := Derived{Store: c.Store, Records: c.Records}
	p, err := kept.Get(c.ctx, kindParts, content.OCI())
	if err != nil {
		return nil, err
	}
	const each = len(toc.Digest{}) + 8
	off := int64(0)
	for ; len(p) >= each; p = p[each:] {
		x := toc.Extent{Offset: off, Size: int64(binary.BigEndian.Uint64(p[each-8 : each])), Digest: toc.Digest(p[:each-8])}
		if x.Size <= 0 || x.Size > size-off {
			return nil, toc.ErrNotKept
		}
		parts = append(parts, x)
		off += x.Size
	}
	if off != size {
		return nil, toc.ErrNotKept
	}
	return parts, nil
}
