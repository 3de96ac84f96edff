package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/klauspost/compress/gzip"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

// cut is what a layer is cut into: chunks, and what its map has inline. Together they are all
// of what is cut.
type cut struct {
	chunks [][]byte
	inline []byte
	raw    bool // the chunks are compressed already
}

// scheme is a way to cut the tar of a layer.
type scheme struct {
	name string
	cut  func(tar []byte) (cut, error)
}

// protocol is what sites do.
var protocol = scheme{"files, by content, 64 KiB", walk(cdc.NormalSize, inline)}

var schemes = []scheme{
	{"gzip, by content, 16 KiB", cutGzip},
	{"tar, every 1 MiB", cutEvenly},
	{"whole files", cutFiles},
	{"tar, by content, 64 KiB", func(tar []byte) (cut, error) { return cut{chunks: byContent(64<<10, tar)}, nil }},
	{"files, by content, 16 KiB", walk(16<<10, inline)},
	{"files, by content, 32 KiB", walk(32<<10, inline)},
	protocol,
	{"the same, headers are chunks", walk(cdc.NormalSize, apart)},
	{"the same, headers with contents", walk(cdc.NormalSize, joined)},
	{"files, by content, 256 KiB", walk(256<<10, inline)},
}

// headers is what is done with the headers that a map has inline: they stay there, are chunks of
// their own, or one with the content behind them.
type headers int

const (
	inline headers = iota
	apart
	joined
)

// cutGzip cuts what a registry would have.
func cutGzip(tar []byte) (cut, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(tar); err != nil {
		return cut{}, err
	}
	if err := w.Close(); err != nil {
		return cut{}, err
	}
	return cut{chunks: byContent(16<<10, b.Bytes()), raw: true}, nil
}

// cutEvenly is what nothing but compression gains: hardly any of these chunks is held.
func cutEvenly(tar []byte) (cut, error) {
	return cut{chunks: slices.Collect(slices.Chunk(tar, batch))}, nil
}

func byContent(normal int, p []byte) (all [][]byte) {
	for c := cdc.NewCutter(normal); len(p) > 0; {
		n := c.Cut(p)
		all = append(all, p[:n])
		p = p[n:]
	}
	return all
}

// cutFiles has a chunk of each file. None of the tars has files with holes.
func cutFiles(layer []byte) (c cut, err error) {
	rest := bytes.NewReader(layer)
	end := 0 // of the content before
	for r := tar.NewReader(rest); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			c.inline = append(c.inline, layer[end:]...)
			return c, nil
		} else if err != nil {
			return c, err
		}
		if h.Size == 0 {
			continue
		}
		start := len(layer) - rest.Len()
		c.inline = append(c.inline, layer[end:start]...)
		end = start + int(h.Size)
		c.chunks = append(c.chunks, layer[start:end])
	}
}

// walk cuts as sites do, but for the size and the headers.
func walk(normal int, h headers) func(tar []byte) (cut, error) {
	return func(tar []byte) (c cut, err error) {
		start := int64(0) // of a header that is to be joined
		err = cdc.NewCutter(normal).Walk(context.Background(), bytes.NewReader(tar), func(k cdc.Chunk, _ []byte) error {
			end := k.Offset + k.Size
			switch {
			case k.Inline != nil && h == joined && end < int64(len(tar)):
				return nil
			case k.Inline != nil && h == inline:
				c.inline = append(c.inline, tar[start:end]...)
			default:
				c.chunks = append(c.chunks, tar[start:end])
			}
			start = end
			return nil
		})
		return c, err
	}
}

// size is how many bytes were cut.
func (c *cut) size() int {
	n := len(c.inline)
	for _, p := range c.chunks {
		n += len(p)
	}
	return n
}

// mapSize is how many bytes a map takes, compressed: digests and sizes hardly are.
func (c *cut) mapSize() int {
	const size = 3 // bytes of a varint
	return len(c.chunks)*(size+len(toc.Digest{})) + pack(c.inline)
}
