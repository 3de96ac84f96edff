package chunkstore

import (
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Lend opens the file of a blob at off if n bytes from there can be read as they
// are: every chunk has been checked by this process. The caller closes it.
func (s *Disk) Lend(d digest.Digest, off, n int64) (*os.File, bool) {
	if n <= 0 || !s.lendable(d, off, n) {
		return nil, false
	}
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, false
	}
	if info, err := f.Stat(); err != nil || info.Size() < off+n {
		f.Close()
		return nil, false // cut short: the chunk's reader will find out and drop it
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil || !s.lendable(d, off, n) || !s.current(f, d) {
		f.Close()
		return nil, false
	}
	return f, true
}

func (s *Disk) lendable(d digest.Digest, off, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	if b == nil || s.cfg.VerifyAlways || off+n > b.total {
		return false
	}
	b.read = time.Now()
	return b.checked.all(int(off/chunk.Size), int((off+n-1)/chunk.Size)+1)
}

// current reports whether f is the file of a blob still: it may have been dropped and
// begun anew between the look at its chunks and the opening. Once f is open, to be
// lendable and then current means that the chunks were looked up in f.
func (s *Disk) current(f *os.File, d digest.Digest) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(s.path(d))
	return err == nil && os.SameFile(opened, now)
}
