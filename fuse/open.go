package fuse

import (
	"context"
	"os"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/granary-oci/granary/toc"
)

// Files are contents that are complete on this machine's disk.
type Files interface {
	// Open opens a file that holds a regular file's content, all of it and nothing
	// else, verified, and that nobody changes. Any error says that there is none, now
	// at least. The caller closes it.
	Open(ctx context.Context, f *toc.File) (*os.File, error)
}

// counted is the handle of files that may be passed to the kernel; 0 is that of others.
const counted = 1

const (
	// smallest is the size of the smallest file that is asked for, in bytes: what is
	// smaller comes with one or two reads, and stays in the kernel's memory after.
	smallest = 256 << 10
	// askFor is how long a program waits for the answer when it opens a file.
	askFor = 200 * time.Millisecond
	// asks bounds how many files are asked for at a time behind programs' backs.
	asks = 4
)

// Open opens a file. One that is complete on disk is passed to the kernel, which then
// reads it without asking. Where none is, it is told that files are not opened: it asks
// no more, and keeps what it has read.
func (f *FileSystem) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if !f.opens.counted() {
		return gofuse.ENOSYS
	}
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE | gofuse.FOPEN_NOFLUSH
	file, ok := f.file(in.NodeId)
	if !ok || !passable(&file) {
		return gofuse.OK
	}
	id, ok := f.opens.open(in.NodeId, func() (*os.File, error) { return f.ask(&file) })
	if !ok {
		out.Fh = counted
		return gofuse.OK
	}
	f.usage.complete(in.NodeId, file.Size)
	out.Fh, out.OpenFlags, out.BackingID = counted, gofuse.FOPEN_PASSTHROUGH|gofuse.FOPEN_NOFLUSH, id
	return gofuse.OK
}

// Release is told that somebody has closed a file. If nobody has it open any more it may
// be complete now: who is asked for it makes it ready for the next time.
func (f *FileSystem) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	if in.Fh != counted || !f.opens.release(in.NodeId) {
		return
	}
	file, ok := f.file(in.NodeId)
	if !ok {
		return
	}
	select {
	case f.opens.asking <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() { <-f.opens.asking }()
		if lent, err := f.ask(&file); err == nil {
			lent.Close()
		}
	}()
}

// Flush says that nothing happens when a file is closed: the kernel tells of it no more.
func (f *FileSystem) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.ENOSYS }

func (f *FileSystem) ask(file *toc.File) (*os.File, error) {
	ctx, done := context.WithTimeout(context.Background(), askFor)
	defer done()
	return f.cfg.Files.Open(ctx, file)
}

// passable reports whether a file may be passed to the kernel: if it is large, has no
// holes, and is known by its digest.
func passable(file *toc.File) bool {
	return file.Type == toc.Regular && file.Size >= smallest && file.Digest.Known() && held(file) == file.Size
}
