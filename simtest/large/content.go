package main

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"

	"github.com/opencontainers/go-digest"
)

const chunkSize = 1 << 20

// model is a large blob that is made as it is read. Its chunks have nothing in common with each
// other, nor with the same chunk of another version.
type model struct {
	size    int64
	changed func(i int64) bool // chunks that are other than those of the model without
	digest  digest.Digest
}

// noise is what all chunks are made of, each from a place of its own on.
var noise = sync.OnceValue(func() []byte {
	p := make([]byte, 16<<20)
	_, _ = rand.NewChaCha8([32]byte{'n'}).Read(p)
	return p
})

// newModel returns a model, which it reads once for its digest.
func newModel(size int64, changed func(i int64) bool) (*model, error) {
	m := &model{size: size, changed: changed}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(m, 0, size)); err != nil {
		return nil, err
	}
	m.digest = digest.NewDigest(digest.SHA256, h)
	return m, nil
}

// ReadAt implements [io.ReaderAt].
func (m *model) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < m.size {
		i, within := off/chunkSize, off%chunkSize
		want := p[n:min(int64(len(p)), int64(n)+chunkSize-within, int64(n)+m.size-off)]
		m.fill(want, i, within)
		n += len(want)
		off += int64(len(want))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// fill makes part of chunk i.
func (m *model) fill(p []byte, i, within int64) {
	all := noise()
	from := (i*7919*64 + within) % int64(len(all))
	for n := copy(p, all[from:]); n < len(p); {
		n += copy(p[n:], all)
	}
	var head [16]byte
	binary.BigEndian.PutUint64(head[:], uint64(i))
	if m.changed != nil && m.changed(i) {
		head[15] = 1
	}
	if within < int64(len(head)) {
		copy(p, head[within:])
	}
}
