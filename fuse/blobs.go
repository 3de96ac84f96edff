package fuse

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/granary-oci/granary/toc"
)

// blobTree returns a directory of images, each a file of its name.
func blobTree(images []*Image) (*toc.Tree, error) {
	var b toc.Builder
	for _, i := range images {
		e := toc.Entry{Name: i.Name, Type: toc.Regular, Mode: 0o400, Size: i.Size, ModTime: time.Unix(0, 0)}
		if i.Size > 0 {
			e.Extents = []toc.Extent{{Size: i.Size}}
		}
		if err := b.Add(e); err != nil {
			return nil, err
		}
	}
	table, err := b.Done()
	if err != nil {
		return nil, err
	}
	tree, err := toc.Overlay([]*toc.Layer{{TOC: table}})
	if err == nil && tree.Len() != len(images)+1 {
		err = fmt.Errorf("%d images have %d names", len(images), tree.Len()-1)
	}
	return tree, err
}

// A file system's own records are read by the block, and many of them lie together: what
// is smaller than a piece is read by pieces, of which the last ones are kept.
const (
	pieceSize  = 64 << 10
	keptPieces = 64
)

// pieces are contents of which small parts are read by pieces.
type pieces struct {
	from Contents

	mu   sync.Mutex
	kept map[piece][]byte
	ring [keptPieces]piece
	next int // place in ring of the oldest
}

type piece struct {
	file  string
	index int64
}

// ReadAt implements [Contents].
func (s *pieces) ReadAt(ctx context.Context, f *toc.File, p []byte, off int64) error {
	if len(p) >= pieceSize {
		return s.from.ReadAt(ctx, f, p, off)
	}
	for len(p) > 0 {
		whole, err := s.get(ctx, f, off/pieceSize)
		if err != nil {
			return err
		}
		n := copy(p, whole[off%pieceSize:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// get returns a piece of a file, not to be changed.
func (s *pieces) get(ctx context.Context, f *toc.File, index int64) ([]byte, error) {
	at := piece{f.Name, index}
	s.mu.Lock()
	p, ok := s.kept[at]
	s.mu.Unlock()
	if ok {
		return p, nil
	}
	p = make([]byte, min(pieceSize, f.Size-index*pieceSize))
	if err := s.from.ReadAt(ctx, f, p, index*pieceSize); err != nil {
		return nil, err
	}
	s.keep(at, p)
	return p, nil
}

func (s *pieces) keep(at piece, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		s.kept = make(map[piece][]byte, keptPieces)
	}
	if _, again := s.kept[at]; again {
		return
	}
	delete(s.kept, s.ring[s.next])
	s.kept[at], s.ring[s.next] = p, at
	s.next = (s.next + 1) % keptPieces
}
