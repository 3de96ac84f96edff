package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Get implements [chunk.Source]. A chunk that the store does not have under
// ref's blob, but has under another with the digest that ref gives, is copied.
func (s *Disk) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	i := ref.Index()
	s.mu.Lock()
	b := s.blobs[ref.Blob]
	if b != nil && b.total == ref.Total && b.writing[i] != nil {
		defer s.mu.Unlock()
		return b.writing[i].bytes, nil
	}
	if b == nil || b.total != ref.Total || i >= b.chunks() || !b.have.has(i) {
		s.mu.Unlock()
		return s.byDigest(ctx, ref)
	}
	v, vouched := b.voucher(i)
	check := vouched && (s.cfg.VerifyAlways || !b.checked.has(i))
	b.read = time.Now()
	b.users++
	s.mu.Unlock()
	defer s.release(b)

	p, err := s.read(v.ref)
	if err == nil && check {
		err = v.check(p)
	}
	switch {
	case err == nil:
		s.mu.Lock()
		if b.have.has(i) { // else it was dropped meanwhile, and its file may be begun anew
			b.checked.set(i)
		}
		s.mu.Unlock()
		return p, nil
	case chunk.IsCorrupt(err):
		s.drop(b, i)
	}
	return nil, err
}

// ReadAt reads the len(p) bytes at off of a chunk into p. Of a chunk that this process
// has checked, of a blob that is known to be right, nothing else is read. The errors are
// those of Get.
func (s *Disk) ReadAt(ctx context.Context, ref chunk.Ref, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > ref.Size {
		return fmt.Errorf("chunk %s: %d bytes at %d of it", ref, len(p), off)
	}
	if b := s.holdChecked(ref); b != nil {
		defer s.release(b)
		if s.readAt(ref, p, off, 0) == nil {
			return nil
		}
	}
	all, err := s.Get(ctx, ref)
	if err == nil {
		copy(p, all[off:])
	}
	return err
}

// holdChecked returns the blob of a chunk that can be read as it is, held against
// eviction, or nil.
func (s *Disk) holdChecked(ref chunk.Ref) *blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, i := s.blobs[ref.Blob], ref.Index()
	if b == nil || b.total != ref.Total || i >= b.chunks() || !b.checked.has(i) || !b.proven && !b.whole() || s.cfg.VerifyAlways {
		return nil
	}
	b.read = time.Now()
	b.users++
	return b
}

func (s *Disk) readAt(ref chunk.Ref, p []byte, off int64, flag int) error {
	f, err := os.OpenFile(s.path(ref.Blob), os.O_RDONLY|flag, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.ReadAt(p, ref.Offset+off); n < len(p) {
		return err
	}
	return nil
}

// read reads a chunk from its file, unchecked. A file that is gone or short is
// a [*chunk.CorruptError].
func (s *Disk) read(ref chunk.Ref) ([]byte, error) {
	f, err := os.Open(s.path(ref.Blob))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &chunk.CorruptError{Source: diskName, Ref: ref, Reason: "its file is gone"}
	}
	if err != nil {
		return nil, fmt.Errorf("chunk %s: %w", ref, err)
	}
	defer f.Close()
	p := make([]byte, ref.Size)
	if n, err := f.ReadAt(p, ref.Offset); err == io.EOF && n < len(p) {
		return nil, &chunk.CorruptError{Source: diskName, Ref: ref, Reason: fmt.Sprintf("its file ends after %d bytes", n)}
	} else if err != nil && err != io.EOF {
		return nil, fmt.Errorf("chunk %s: %w", ref, err)
	}
	return p, nil
}

// drop forgets a chunk whose bytes are wrong. Its record follows with the next
// commit; until then a crash brings it back, to be checked and dropped again.
func (s *Disk) drop(b *blob, i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !b.have.has(i) {
		return
	}
	if b.whole() {
		s.cfg.Watch(b.digest, Lost)
	}
	s.doubt(sharer{b, i})
	s.uncount(sharer{b, i})
	b.have.clear(i)
	b.checked.clear(i)
	b.dirty[i] = time.Time{}
}
