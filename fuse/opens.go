package fuse

import (
	"os"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// opens are the files that are open, of those that may be passed to the kernel. It wants
// all who have one open to read it in the same way: it may be passed only if nobody has
// it open otherwise, and who opens it while it is passed gets the same file
// (fs/fuse/iomode.c of Linux). It tells that a file is closed only after it has taken note
// of that itself, so that what is counted here is never less than what it counts. While a
// file is mapped it is open, but if it is passed: then what is mapped is not of the mount.
type opens struct {
	asking chan struct{} // full while as many ask for files as may

	mu      sync.Mutex
	kernel  backings // nil if no file can be passed
	off     bool     // the kernel has refused one
	refused func(error)
	files   map[uint64]*opened // by number
}

// opened is a file that is open.
type opened struct {
	count  int
	passed bool
	id     int32 // of what the kernel reads, if it is passed
}

// backings are the files that the kernel reads itself, by number.
type backings interface {
	register(*os.File) (id int32, err error)
	unregister(id int32)
}

func newOpens() *opens {
	return &opens{asking: make(chan struct{}, asks), files: make(map[uint64]*opened)}
}

// begin says that files are passed to the kernel, until it refuses one.
func (o *opens) begin(kernel backings, refused func(error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kernel, o.refused = kernel, refused
}

// counted reports whether files that are opened must be counted. They need not while
// none can be passed.
func (o *opens) counted() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kernel != nil && !o.off || len(o.files) > 0
}

// open counts one more who has a file open, and returns what the kernel reads then, if
// it is passed. ask asks for the file's content.
func (o *opens) open(number uint64, ask func() (*os.File, error)) (id int32, passed bool) {
	if f, ok := o.join(number); ok {
		return f.id, f.passed
	}
	content, err := ask()
	if err == nil {
		defer content.Close()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.files[number]
	if f == nil { // nobody was faster
		f = &opened{}
		o.files[number] = f
		if err == nil {
			o.pass(f, content)
		}
	}
	f.count++
	return f.id, f.passed
}

// join counts one more who has a file open, if anybody has.
func (o *opens) join(number uint64) (f opened, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.files[number] == nil {
		return f, false
	}
	o.files[number].count++
	return *o.files[number], true
}

// pass passes a file that nobody has open. If the kernel refuses one it refuses all: it
// wants CAP_SYS_ADMIN, and no file of a file system that is laid over others.
func (o *opens) pass(f *opened, content *os.File) {
	if o.kernel == nil || o.off {
		return
	}
	id, err := o.kernel.register(content)
	if err != nil {
		o.off = true
		o.refused(err)
		return
	}
	f.id, f.passed = id, true
}

// release counts one less who has a file open, and reports whether it was the last of
// those who read it through this process.
func (o *opens) release(number uint64) (last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.files[number]
	if f == nil {
		return false
	}
	if f.count--; f.count > 0 {
		return false
	}
	delete(o.files, number)
	if f.passed {
		o.kernel.unregister(f.id)
	}
	return !f.passed && !o.off
}

// connection is the kernel's end of a mount.
type connection struct{ *gofuse.Server }

func (c connection) register(file *os.File) (id int32, err error) {
	id, errno := c.RegisterBackingFd(&gofuse.BackingMap{Fd: int32(file.Fd())})
	if errno != 0 {
		return 0, errno
	}
	return id, nil
}

func (c connection) unregister(id int32) { _ = c.UnregisterBackingFd(id) }

// Init is told of the connection when the kernel has said what it can.
func (f *FileSystem) Init(server *gofuse.Server) {
	if f.cfg.Files == nil || server.KernelSettings().Flags64()&gofuse.CAP_PASSTHROUGH == 0 {
		return
	}
	f.opens.begin(connection{server}, func(err error) {
		f.cfg.Log.Debug("the kernel does not read files by itself", "error", err)
	})
}
