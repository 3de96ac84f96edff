package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// cloneLeast is the size, in bytes, of the smallest chunks that are cloned: less is sooner
// written, and may stand in a file's metadata.
const cloneLeast = smallWrite + 1

// clones reports whether the file system of dir can share bytes of files, to which an empty one
// says as much as any.
func clones(dir string) bool {
	path := filepath.Join(dir, "clones")
	f, err := os.Create(path)
	if err != nil {
		return false
	}
	defer f.Close()
	defer os.Remove(path)
	return unix.IoctlFileClone(int(f.Fd()), int(f.Fd())) == nil
}

// mayClone reports whether a chunk of n bytes may be cloned, or be what others are cloned from.
func (s *Disk) mayClone(n int64) bool { return n >= cloneLeast && !s.noClones.Load() }

// named returns ref with the digest of p, by which it finds what it can share bytes with, and is
// found. Where nothing is shared, to make a digest is left to who needs one: it takes half a
// millisecond.
func (s *Disk) named(ref chunk.Ref, p []byte) chunk.Ref {
	if ref.Want() == "" && s.mayClone(ref.Size) {
		ref.Digest = digest.FromBytes(p)
	}
	return ref
}

// clone keeps a chunk, p, by letting it share the bytes of one with its digest that is stored
// (FICLONERANGE, ioctl_ficlonerange(2), on Btrfs and XFS), and reports whether it does. A clone
// is what stood there when it was made, whatever becomes of the source, so nothing is held.
//
// It is read and compared: the source may be damaged, or be written anew in the meantime.
func (s *Disk) clone(b *blob, ref chunk.Ref, p []byte, drops int) bool {
	src, ok := s.twin(ref)
	if !ok {
		return false
	}
	w := s.begin(b, ref, p, drops)
	if w == nil {
		return true // as in write
	}
	made, err := false, chunk.ErrNotFound
	if s.joined(src, sharer{b, ref.Index()}) {
		made, err = s.cloneRange(src, ref)
	}
	same := false
	if err == nil {
		same = s.stands(ref, p)
	}
	s.end(b, ref, w, made, same)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EXDEV):
		s.noClones.Store(true)
	case err == nil && !same:
		s.check(src)
	}
	return same
}

// twin returns a chunk that has ref's digest, if it may be cloned.
func (s *Disk) twin(ref chunk.Ref) (src chunk.Ref, ok bool) {
	want := ref.Want()
	if !s.mayClone(ref.Size) || want == "" || want.Algorithm() != digest.SHA256 {
		return chunk.Ref{}, false
	}
	src, ok = s.findDigest(want)
	return src, ok && src.Key() != ref.Key() && src.Size == ref.Size
}

// joined is join, if the source is there still.
func (s *Disk) joined(src chunk.Ref, c sharer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, i := s.blobs[src.Blob], src.Index()
	if a == nil || a.total != src.Total || !a.have.has(i) {
		return false
	}
	s.join(sharer{a, i}, c)
	return true
}

// cloneRange has ref stand in its file by the bytes of src. A last chunk that ends within a
// block of the file system is cloned to the end of a file alone, as it is.
func (s *Disk) cloneRange(src, ref chunk.Ref) (made bool, err error) {
	from, err := os.Open(s.path(src.Blob))
	if err != nil {
		return false, err
	}
	defer from.Close()
	to, made, err := s.openToWrite(ref, 0)
	if err != nil {
		return made, err
	}
	defer to.Close()
	return made, unix.IoctlFileCloneRange(int(to.Fd()), &unix.FileCloneRange{
		Src_fd: int64(from.Fd()), Src_offset: uint64(src.Offset), Src_length: uint64(src.Size), Dest_offset: uint64(ref.Offset),
	})
}

var cloneBuffers = sync.Pool{New: func() any { return new([chunk.Size]byte) }}

// stands reports whether p stands where ref says. It is read past the page cache, which takes a
// quarter of the time, and shows what is on the disk, whatever the cache has of the source.
func (s *Disk) stands(ref chunk.Ref, p []byte) bool {
	buf := cloneBuffers.Get().(*[chunk.Size]byte)
	defer cloneBuffers.Put(buf)
	got := buf[:len(p)]
	err := s.readAt(ref, got, 0, unix.O_DIRECT)
	if err != nil { // which a last chunk need not allow, nor the file system
		err = s.readAt(ref, got, 0, 0)
	}
	return err == nil && bytes.Equal(got, p)
}

// check checks a chunk, which is dropped and reported if it is wrong.
func (s *Disk) check(ref chunk.Ref) {
	if _, more := s.recheck(ref.Blob, ref.Index()); !more {
		return
	}
	if _, err := s.Get(context.Background(), ref); chunk.IsCorrupt(err) {
		s.cfg.Report(err)
	}
}
