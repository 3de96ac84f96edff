package fuse

import (
	"context"
	"errors"
	"log/slog"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/granary-oci/granary/toc"
)

// Contents are where contents of files come from.
type Contents interface {
	// ReadAt reads the len(p) > 0 bytes at off of a regular file's content, off+len(p) ≤
	// f.Size, into p. They are right, and all there, if the error is nil. One that wraps
	// [io/fs.ErrPermission] says that they may not be read. It returns soon after ctx has
	// ended, and is called by several goroutines.
	ReadAt(ctx context.Context, f *toc.File, p []byte, off int64) error
}

// Config says what is mounted, and how.
type Config struct {
	// Tree is the image's.
	Tree *toc.Tree
	// Contents are the contents of its files.
	Contents Contents
	// Files are those contents that the kernel may read itself. With nil it reads none.
	// It takes CAP_SYS_ADMIN, Linux 6.9 or later, and that the files are not on an
	// overlay; and it makes the mount count as one more layer of file systems, of which
	// the kernel allows two: an overlay can be laid over it, and none over that.
	Files Files
	// Source names the image in lists of mounts. Empty is "granary".
	Source string
	// ReadTimeout bounds how long a program may wait for a read. 0 is 2 minutes.
	ReadTimeout time.Duration
	// Log is told of reads that failed, and of what goes wrong when mounting. nil
	// tells nobody.
	Log *slog.Logger
}

// withDefaults returns c with its zeros replaced.
func (c Config) withDefaults() Config {
	if c.Source == "" {
		c.Source = fsName
	}
	if c.ReadTimeout <= 0 {
		c.ReadTimeout = 2 * time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// FileSystem is an image as a file system. Its methods, but for [New], [FileSystem.Serve]
// and [FileSystem.Usage], are for the kernel to call.
type FileSystem struct {
	gofuse.RawFileSystem // answers what is not asked of one that is read-only
	*nodes
	cfg   Config
	usage tally
	opens *opens
}

// New returns the file system that cfg describes.
func New(cfg Config) (*FileSystem, error) {
	if cfg.Tree == nil || cfg.Contents == nil {
		return nil, errors.New("fuse: a file system without a tree, or without contents")
	}
	return &FileSystem{RawFileSystem: gofuse.NewDefaultRawFileSystem(), nodes: newNodes(cfg.Tree), cfg: cfg.withDefaults(), opens: newOpens()}, nil
}

// Usage is what programs have read.
type Usage struct {
	Read    int64 // bytes that the kernel has asked for, those of holes included
	Fetched int64 // bytes of the contents, each once, to 4 KiB
	Content int64 // bytes that the image's files hold, each file once
}

// Usage returns what programs have read so far.
func (f *FileSystem) Usage() Usage {
	read, fetched := f.usage.sums()
	return Usage{Read: read, Fetched: fetched, Content: f.content}
}

// String implements [gofuse.RawFileSystem].
func (f *FileSystem) String() string { return fsName }
