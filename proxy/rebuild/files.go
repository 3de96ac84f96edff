package rebuild

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/granary-oci/granary/toc/cdc"
)

// file is where the content of one is in a tar.
type file struct {
	name       string
	start, end int64
}

// filesOf returns the files of a tar that have content, in order, as far as the headers tell that its map has inline. A map
// is somebody's word, and so are they.
func filesOf(m *cdc.Map) (all []file) {
	h := &headers{m: m}
	for i := range m.Chunks {
		// Longer runs of headers are not inline: then it goes on with the next that is.
		if c := &m.Chunks[i]; c.Inline != nil && c.Offset >= h.pos {
			h.pos = (c.Offset + block - 1) / block * block
			all = h.files(all)
		}
	}
	return all
}

// block is what headers and contents of a tar are multiples of.
const block = 512

// files adds those that follow, up to where there is no header.
func (h *headers) files(all []file) []file {
	for r := tar.NewReader(h); ; {
		entry, err := r.Next()
		if err != nil {
			return all
		}
		if entry.Typeflag == tar.TypeReg && entry.Size > 0 {
			all = append(all, file{path.Clean("/" + entry.Name), h.pos, h.pos + entry.Size})
		}
	}
}

// at returns which of some files, in order, a byte of their tar belongs to; nil if it is none of theirs.
func at(all []file, pos int64) *file {
	i, found := slices.BinarySearchFunc(all, pos, func(f file, pos int64) int { return int(min(max(f.start-pos, -1), 1)) })
	if !found {
		i--
	}
	if i < 0 || pos >= all[i].end {
		return nil
	}
	return &all[i]
}

// headers is a tar of which only what its map has inline is there, and zeros in place of the rest.
type headers struct {
	m   *cdc.Map
	pos int64
}

// Read implements [io.Reader].
func (h *headers) Read(p []byte) (int, error) {
	if h.pos >= h.m.Size() {
		return 0, io.EOF
	}
	c := &h.m.Chunks[h.m.Find(h.pos)]
	from := h.pos - c.Offset
	n := int(min(int64(len(p)), c.Size-from))
	if c.Inline != nil {
		copy(p[:n], c.Inline[from:])
	} else {
		clear(p[:n])
	}
	h.pos += int64(n)
	return n, nil
}

// Seek implements [io.Seeker], for contents not to be read.
func (h *headers) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += h.pos
	case io.SeekEnd:
		offset += h.m.Size()
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	h.pos = offset
	return offset, nil
}
