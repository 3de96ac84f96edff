package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Put implements [chunk.Store]. A chunk that is there already is left as it is.
// One that another blob has takes no more bytes on disk where the file system can share them;
// there, a chunk whose digest ref does not give is hashed. When the budget is used up, Put makes
// room first. The write may still be under way when Put returns; then Get answers from p, and a
// fault is reported.
func (s *Disk) Put(ctx context.Context, ref chunk.Ref, p []byte) error {
	if err := ref.Validate(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if int64(len(p)) != ref.Size {
		return fmt.Errorf("store: chunk %s: %d bytes", ref, len(p))
	}
	b, drops, err := s.hold(ref)
	if b == nil || err != nil {
		return err
	}
	defer s.release(b)
	if err := s.fits(ref, p); err != nil {
		return err
	}
	ref = s.named(ref, p)
	if s.clone(b, ref, p, drops) {
		return nil
	}
	if err := s.makeRoom(ref.Size); err != nil {
		return fmt.Errorf("chunk %s: put: %w", ref, err)
	}
	return s.write(b, ref, p, drops, chunk.IsReadSoon(ctx))
}

// directWriter writes past the page cache while the disk keeps up. A chunk that
// has just gone to a client is seldom read again soon, and to copy it into the
// cache costs more CPU time than all else that is done with it but hashing, most
// of all in a virtual machine whose memory the host gives page by page. What the
// disk cannot take at once goes through the page cache, which absorbs it.
type directWriter struct {
	busy        atomic.Int32 // direct writes under way
	unsupported atomic.Bool  // the file system does not do it
}

const (
	directWrites = 8    // at once, at the most
	directAlign  = 4096 // of memory, length and offset; enough for any disk of today
)

// begin reports whether p may be written directly. If so, end is called after.
func (d *directWriter) begin(p []byte) bool {
	if len(p) == 0 || len(p)%directAlign != 0 || uintptr(unsafe.Pointer(unsafe.SliceData(p)))%directAlign != 0 || d.unsupported.Load() {
		return false
	}
	if d.busy.Add(1) > directWrites {
		d.busy.Add(-1)
		return false
	}
	return true
}

func (d *directWriter) end() { d.busy.Add(-1) }

// smallWrites are writes of small chunks, most of them whole files' contents: what they take
// is to make a file, and nobody needs to wait for that.
type smallWrites struct{ busy atomic.Int32 }

const (
	smallWrite       = 64 << 10 // bytes, at the most
	smallWritesAhead = 32       // at once
)

// begin reports whether p may be written in the background. If so, end is called after.
func (s *smallWrites) begin(p []byte) bool {
	if len(p) > smallWrite {
		return false
	}
	if s.busy.Add(1) > smallWritesAhead {
		s.busy.Add(-1)
		return false
	}
	return true
}

func (s *smallWrites) end() { s.busy.Add(-1) }

// pendingWrite is a chunk on its way into a file.
type pendingWrite struct {
	bytes []byte
	done  chan struct{}
}

// write puts p into its blob's file: in the background if it can go directly or is small,
// and not too much does, else before it returns. What is read soon does not go directly.
func (s *Disk) write(b *blob, ref chunk.Ref, p []byte, drops int, soon bool) error {
	w := s.begin(b, ref, p, drops)
	if w == nil {
		return nil // two came at once, or it came with what was dropped
	}
	flag, end := 0, s.small.end
	switch {
	case !soon && s.direct.begin(p):
		flag, end = syscall.O_DIRECT, s.direct.end
	case s.small.begin(p):
	default:
		return s.finish(b, ref, w, 0)
	}
	go func() { // there are only so many; Sync and Close wait for them
		defer end()
		if err := s.finish(b, ref, w, flag); err != nil {
			s.cfg.Report(err)
		}
	}()
	return nil
}

// begin notes that p is on its way into its blob's file, and counts it. It returns nil if it is
// in already, or on its way, or if the blob was dropped since p came.
func (s *Disk) begin(b *blob, ref chunk.Ref, p []byte, drops int) *pendingWrite {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := ref.Index()
	if b.writing[i] != nil || b.have.has(i) || b.drops != drops {
		return nil
	}
	w := &pendingWrite{p, make(chan struct{})}
	b.writing[i] = w
	b.users++
	s.used += ref.Size
	return w
}

// fits checks a chunk of a blob that is proven: it was lost since, or never kept. Readers of
// such a blob check nothing, and its file may be lent.
func (s *Disk) fits(ref chunk.Ref, p []byte) error {
	s.mu.Lock()
	b := s.blobs[ref.Blob]
	if b == nil || !b.proven || b.total != ref.Total {
		s.mu.Unlock()
		return nil
	}
	v, vouched := b.voucher(ref.Index())
	s.mu.Unlock()
	if !vouched {
		return nil
	}
	return v.check(p)
}

// finish writes a chunk and notes that it is in.
func (s *Disk) finish(b *blob, ref chunk.Ref, w *pendingWrite, flag int) error {
	made, err := s.writeTo(ref, w.bytes, flag)
	if flag != 0 && errors.Is(err, syscall.EINVAL) {
		s.direct.unsupported.Store(true)
		var again bool
		again, err = s.writeTo(ref, w.bytes, 0)
		made = made || again
	}
	s.end(b, ref, w, made, err == nil)
	if err != nil {
		return fmt.Errorf("chunk %s: put: %w", ref, err)
	}
	return nil
}

// end notes that a chunk which began is in, or is not.
func (s *Disk) end(b *blob, ref chunk.Ref, w *pendingWrite, made, in bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.letGo(b) // before anybody who waits for the write can look
	delete(b.writing, ref.Index())
	close(w.done)
	if in {
		s.wrote(b, ref, made)
		return
	}
	s.uncount(sharer{b, ref.Index()})
	b.made = b.made || made
}

// wrote notes that a chunk's bytes are in its file. s.mu is held.
func (s *Disk) wrote(b *blob, ref chunk.Ref, made bool) {
	i := ref.Index()
	b.made = b.made || made
	if b.have.has(i) {
		return // written by two at once, with the same bytes as far as is known
	}
	b.have.set(i)
	b.checked.set(i)
	b.dirty[i] = time.Now()
	if raw := rawWant(ref); raw != "" {
		b.sums.put(i, sum{digest: raw, link: b.sums.at(i).link})
		s.fresh[raw] = b.ref(i)
	}
	if b.whole() {
		s.cfg.Watch(b.digest, Completed)
	}
}

// awaitWrites waits for the writes to some blobs that are under way.
func (s *Disk) awaitWrites(of func(*blob) bool) {
	var all []*pendingWrite
	s.mu.Lock()
	for _, b := range s.blobs {
		if len(b.writing) > 0 && of(b) {
			all = slices.AppendSeq(all, maps.Values(b.writing))
		}
	}
	s.mu.Unlock()
	for _, w := range all {
		<-w.done
	}
}

func (s *Disk) writeTo(ref chunk.Ref, p []byte, flag int) (made bool, err error) {
	f, made, err := s.openToWrite(ref, flag)
	if err != nil {
		return made, err
	}
	_, err = f.WriteAt(p, ref.Offset)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return made, err
}

// openToWrite opens the file of ref's blob, which is made if it is not there.
func (s *Disk) openToWrite(ref chunk.Ref, flag int) (f *os.File, made bool, err error) {
	path := s.path(ref.Blob)
	f, err = os.OpenFile(path, os.O_WRONLY|flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = makeFile(path, ref.Total, flag)
		return f, true, err
	}
	return f, false, err
}

// makeFile makes a blob's file in its full size, without any blocks: writes that
// do not move a file's end need not wait for each other.
func makeFile(path string, size int64, flag int) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flag, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
