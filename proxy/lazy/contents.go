package lazy

import (
	"context"
	"fmt"
	"io"
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
func (c *Contents) For(ctx context.Context, origin Origin, mayRead func(Origin) bool) toc.Contents {
	if c.Store == nil {
		return nil
	}
	return &readable{c, ctx, origin, mayRead}
}

// readable are contents as somebody may read them.
type readable struct {
	*Contents
	ctx     context.Context // of the reader
	origin  Origin
	mayRead func(Origin) bool
}

// ReadAt implements [toc.Contents].
func (c *readable) ReadAt(content toc.Digest, size int64, p []byte, off int64) (n int, err error) {
	m, err := chunk.Grid(content.OCI(), size)
	if err != nil {
		return 0, err
	}
	if m.Len() > 1 && !c.Store.Proven(m.Blob()) {
		return 0, toc.ErrNotKept
	}
	p = p[:min(int64(len(p)), size-off)]
	for n < len(p) {
		r := m.At(m.Find(off + int64(n)))
		b, err := c.Store.Get(c.ctx, r)
		if err != nil {
			return n, toc.ErrNotKept
		}
		if n == 0 && !c.allowed(m.Blob()) {
			return 0, toc.ErrNotKept
		}
		n += copy(p[n:], b[off+int64(n)-r.Offset:])
	}
	return n, nil
}

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
	_ = c.Records.AddOrigin(content.OCI(), c.origin.String()) // reported where it is kept
	return nil
}
