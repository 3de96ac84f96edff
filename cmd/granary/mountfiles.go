package main

import (
	"context"
	"os"

	"github.com/granary-oci/granary/chunkstore/lend"
	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/toc"
)

// files returns the files that the node has on this machine's disk, or nil if they are
// not wanted or cannot be had: the node may be elsewhere. stop is to be called after.
func (c *mountCmd) files(e *env) (files fuse.Files, stop func()) {
	if c.Passthrough == "off" || os.Geteuid() != 0 {
		return nil, func() {}
	}
	path := lend.Path(c.DataDir)
	if s, err := c.status(e.ctx); err == nil {
		path = s.Files
	}
	client := lend.NewClient(path)
	if err := client.Reach(); err != nil {
		e.log.Debug("files are not read by the kernel itself", "error", err)
		return nil, func() {}
	}
	return lentFiles{client}, client.Close
}

// lentFiles are files of contents, by their digests.
type lentFiles struct{ node *lend.Client }

// Open implements [fuse.Files].
func (l lentFiles) Open(ctx context.Context, f *toc.File) (*os.File, error) {
	q := lend.Request{Content: lend.Content{Digest: f.Digest, Size: f.Size}}
	if len(f.Extents) > 1 {
		q.Parts = parts(f)
	}
	return l.node.Open(ctx, q)
}

// parts returns the contents that a file consists of, or nil if they are not known, or
// leave holes.
func parts(f *toc.File) (all []lend.Content) {
	end := int64(0)
	for _, x := range f.Extents {
		if x.Offset != end || !x.Digest.Known() || len(all) == lend.MaxParts {
			return nil
		}
		all = append(all, lend.Content{Digest: x.Digest, Size: x.Size})
		end += x.Size
	}
	if end != f.Size {
		return nil
	}
	return all
}
