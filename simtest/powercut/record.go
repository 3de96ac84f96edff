// Package powercut says what a disk may hold after the power has failed: a
// process that is killed leaves the page cache behind, a power cut does not.
//
// [Record] mounts a file system through FUSE that passes everything on to a
// folder and writes down what was asked of it, in order. [Recording.Rebuild]
// makes a folder as a disk may have it if the power fails at some point of that
// record:
//
//   - Data of a file that was synced (fsync, fdatasync) by then is there. Of what
//     was written since, each page of 4 KiB is there or not, by chance.
//   - Names and sizes change in the order in which they were changed, as in the
//     journal of ext4: those of a prefix are there, which includes all that a sync
//     of the folder, or of the new file itself, had made durable.
//
// Programs need not know: databases that map their files for reading work too.
// It does not model disks that lie about a sync, or that tear a page.
package powercut

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Recording is a mounted file system and what was asked of it.
type Recording struct {
	server *fuse.Server
	spool  *os.File // the bytes of all writes, one after the other

	mu     sync.Mutex
	ops    []op
	spoolN int64
	ids    map[uint64]int // by inode number of the folder below
	lastID int
}

type kind int

const (
	create kind = iota
	mkdir
	unlink
	rmdir
	rename
	truncate
	write
	syncFile
	syncDir
)

// op is one thing that was asked. Names are paths within the file system.
type op struct {
	kind      kind
	name, to  string
	id        int   // of the file
	off, n    int64 // of data; n is also the size of truncate
	spool     int64 // where the data is
	completed int   // of a sync: how many operations there were when it was done
}

// Record mounts a recording file system at mnt, over the folder below.
func Record(below, mnt string) (*Recording, error) {
	spool, err := os.CreateTemp("", "powercut-spool-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(spool.Name()) // it lives as long as it is open
	r := &Recording{spool: spool, ids: make(map[uint64]int)}
	data := &fs.LoopbackRoot{Path: below}
	data.NewNode = func(root *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{LoopbackNode: fs.LoopbackNode{RootData: root}, r: r}
	}
	root := &node{LoopbackNode: fs.LoopbackNode{RootData: data}, r: r}
	data.RootNode = root
	r.server, err = fs.Mount(mnt, root, &fs.Options{MountOptions: fuse.MountOptions{
		FsName: "powercut", Name: "powercut", DirectMount: true, DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_WRITEBACK_CACHE,
	}})
	if err != nil {
		spool.Close()
		return nil, fmt.Errorf("powercut: mount: %w", err)
	}
	return r, nil
}

// Close unmounts. What was recorded can still be rebuilt until Discard.
func (r *Recording) Close() error { return r.server.Unmount() }

// Discard frees what the recording holds.
func (r *Recording) Discard() { r.spool.Close() }

// Len returns how many operations there have been.
func (r *Recording) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}

func (r *Recording) add(o op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

// addWrite records data before it is written: what is under way at the cut may
// be there in part.
func (r *Recording) addWrite(id int, p []byte, off int64) error {
	r.mu.Lock()
	at := r.spoolN
	r.spoolN += int64(len(p))
	r.ops = append(r.ops, op{kind: write, id: id, off: off, n: int64(len(p)), spool: at})
	r.mu.Unlock()
	_, err := r.spool.WriteAt(p, at)
	return err
}

// addSync records a sync. It vouches for what came before it, once it is done.
func (r *Recording) addSync(o op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
	r.ops[len(r.ops)-1].completed = len(r.ops)
}

// idOf returns the identity of a file, which outlives its name.
func (r *Recording) idOf(ino uint64, fresh bool) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.ids[ino]; fresh || !ok {
		r.lastID++
		r.ids[ino] = r.lastID
	}
	return r.ids[ino]
}

// node is a file or folder.
type node struct {
	fs.LoopbackNode
	r *Recording
}

func (n *node) name(child string) string { return path.Join(n.Path(nil), child) }

func (n *node) below(child string) string {
	return filepath.Join(n.RootData.Path, n.Path(nil), child)
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, fh, fuseFlags, errno := n.LoopbackNode.Create(ctx, name, flags&^syscall.O_DIRECT, mode, out)
	if errno != 0 {
		return inode, fh, fuseFlags, errno
	}
	id := n.r.idOf(inoOf(n.below(name)), true)
	n.r.add(op{kind: create, name: n.name(name), id: id})
	return inode, &file{fh.(handle), n.r, id}, 0, 0
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	fh, _, errno := n.LoopbackNode.Open(ctx, flags&^syscall.O_DIRECT)
	if errno != 0 {
		return nil, 0, errno
	}
	return &file{fh.(handle), n.r, n.r.idOf(inoOf(n.below("")), false)}, 0, 0
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	inode, errno := n.LoopbackNode.Mkdir(ctx, name, mode, out)
	if errno == 0 {
		n.r.add(op{kind: mkdir, name: n.name(name)})
	}
	return inode, errno
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	errno := n.LoopbackNode.Unlink(ctx, name)
	if errno == 0 {
		n.r.add(op{kind: unlink, name: n.name(name)})
	}
	return errno
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	errno := n.LoopbackNode.Rmdir(ctx, name)
	if errno == 0 {
		n.r.add(op{kind: rmdir, name: n.name(name)})
	}
	return errno
}

func (n *node) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	errno := n.LoopbackNode.Rename(ctx, name, parent, newName, flags)
	if errno == 0 {
		to := path.Join(parent.EmbeddedInode().Path(nil), newName)
		n.r.add(op{kind: rename, name: n.name(name), to: to})
	}
	return errno
}

func (n *node) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if f, ok := fh.(*file); ok {
		fh = f.handle
	}
	errno := n.LoopbackNode.Setattr(ctx, fh, in, out)
	if size, ok := in.GetSize(); ok && errno == 0 {
		n.r.add(op{kind: truncate, id: n.r.idOf(inoOf(n.below("")), false), n: int64(size)})
	}
	return errno
}

func (n *node) Getattr(ctx context.Context, fh fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if f, ok := fh.(*file); ok {
		fh = f.handle
	}
	return n.LoopbackNode.Getattr(ctx, fh, out)
}

// Fsync is that of files and folders alike. Nothing is synced: the folder below
// is thrown away.
func (n *node) Fsync(_ context.Context, fh fs.FileHandle, _ uint32) syscall.Errno {
	if f, ok := fh.(*file); ok {
		n.r.addSync(op{kind: syncFile, id: f.id})
	} else {
		n.r.addSync(op{kind: syncDir, name: n.name("")})
	}
	return 0
}

// CopyFileRange would write past the record; callers fall back to writing.
func (n *node) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.ENOSYS
}

// handle is what the file system below gives for an open file.
type handle interface {
	fs.FileHandle
	fs.FileReader
	fs.FileWriter
	fs.FileFlusher
	fs.FileReleaser
}

type file struct {
	handle
	r  *Recording
	id int
}

func (f *file) Write(ctx context.Context, p []byte, off int64) (uint32, syscall.Errno) {
	if err := f.r.addWrite(f.id, p, off); err != nil {
		return 0, fs.ToErrno(err)
	}
	return f.handle.Write(ctx, p, off)
}

func inoOf(name string) uint64 {
	var st syscall.Stat_t
	if err := syscall.Lstat(name, &st); err != nil {
		return 0
	}
	return st.Ino
}
