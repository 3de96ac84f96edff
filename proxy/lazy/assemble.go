package lazy

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
)

// Assemble makes one content, in one file, of those that it consists of, in order and
// without gaps. Those who may read all of these may read it: whatever layer each of them
// was read from has all of it. The error is [toc.ErrNotKept] if one is not there, and a
// [*toc.CorruptError] if they do not make what was said.
func (c *Contents) Assemble(ctx context.Context, content toc.Digest, parts []toc.Extent) error {
	whole := toc.Extent{Digest: content}
	for _, x := range parts {
		if x.Offset != whole.Size || x.Size <= 0 {
			return fmt.Errorf("content %s: %w: its parts leave gaps", content, toc.ErrMalformed)
		}
		whole.Size += x.Size
	}
	r := &readable{Contents: c, ctx: ctx}
	if err := keep(ctx, c.Store, content.OCI(), whole.Size, &joined{from: r, parts: parts, whole: whole, sum: sha256.New()}); err != nil {
		return fmt.Errorf("content %s: assemble: %w", content, err)
	}
	for _, o := range c.commonOrigins(parts) {
		if err := c.Records.AddOrigin(content.OCI(), o); err != nil {
			return fmt.Errorf("content %s: %w", content, err)
		}
	}
	return nil
}

// commonOrigins returns the layers that all of some contents were read from.
func (c *Contents) commonOrigins(parts []toc.Extent) (common []string) {
	for i, x := range parts {
		of := c.Records.Origins(x.Digest.OCI())
		if i == 0 {
			common = slices.Clone(of)
		}
		common = slices.DeleteFunc(common, func(o string) bool { return !slices.Contains(of, o) })
	}
	return common
}

// Known reports whether a content was read from any layer.
func (c *Contents) Known(content digest.Digest) bool { return len(c.Records.Origins(content)) > 0 }

// joined reads parts one after the other, and ends well only if they are the whole.
type joined struct {
	from  *readable
	parts []toc.Extent
	whole toc.Extent
	read  int64
	sum   hash.Hash
}

func (j *joined) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), j.whole.Size-j.read)]
	if len(p) == 0 {
		return 0, j.end()
	}
	if err := j.from.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := j.from.read(j.parts, p, j.read)
	_, _ = j.sum.Write(p[:n]) // of a hash
	j.read += int64(n)
	return n, err
}

func (j *joined) end() error {
	if j.read < j.whole.Size {
		return nil // nothing was asked for
	}
	if got := toc.Digest(j.sum.Sum(nil)); got != j.whole.Digest {
		return &toc.CorruptError{Extent: j.whole, Got: got}
	}
	return io.EOF
}
