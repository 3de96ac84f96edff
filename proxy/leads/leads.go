package leads

import (
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/granary-oci/granary/toc"
)

// Limits of what is read of a file, and believed of it.
const (
	maxText  = 1 << 20 // bytes of a module or a script
	maxNames = 1 << 12 // names that a module uses
	maxName  = 256     // bytes of one
	maxLeads = 256     // files that one leads to
	maxDirs  = 64      // directories that are remembered
)

// Finder finds what the files of an image lead to. It learns from the files that it is
// asked about where the image has its libraries and modules. It is safe for concurrent
// use.
type Finder struct {
	image   *toc.Tree
	checked atomic.Bool // compiled modules are compared with their sources

	mu        sync.Mutex
	libraries []string                     // directories with shared libraries
	roots     []string                     // directories where names of modules begin
	modules   map[string]map[string]module // by directory and name, as far as somebody has looked
}

// New returns a finder for an image.
func New(image *toc.Tree) *Finder {
	return &Finder{image: image, modules: make(map[string]map[string]module)}
}

// From returns the regular files that a file leads to, without symlinks on the way and
// each once. r reads the file, whose name is as in the tree: its first bytes, for most
// files, and not more than a MiB of any. What cannot be read leads nowhere.
func (f *Finder) From(file *toc.File, r io.ReaderAt) []toc.File {
	if file.Type != toc.Regular {
		return nil
	}
	s := &search{Finder: f, dir: path.Dir("/" + file.Name), base: path.Base(file.Name)}
	r = &blocks{r: r, size: file.Size}
	switch head := read(r, 0, 4); {
	case string(head) == elfMagic:
		s.object(r, file.Size)
	case strings.HasSuffix(s.base, compiledSuffix):
		s.compiled(file.Name, read(r, 0, min(file.Size, maxText)))
	case strings.HasSuffix(s.base, sourceSuffix):
		s.source(file.Name, read(r, 0, min(file.Size, maxText)))
	case isScript(s.base):
		s.javascript(read(r, 0, min(file.Size, maxText)))
	case s.base == packageFile:
		s.packageOf(read(r, 0, min(file.Size, maxText)))
	case strings.HasPrefix(string(head), "#!"):
		s.script(file.Name, read(r, 0, min(file.Size, maxText)))
	}
	return s.found
}

// blocks reads a file of a size in blocks, of which the last one is kept: what a file says
// is in few places, and read in many small parts.
type blocks struct {
	r    io.ReaderAt
	size int64
	at   int64
	kept []byte
}

const blockSize = 16 << 10

func (b *blocks) ReadAt(p []byte, off int64) (int, error) {
	at := off / blockSize * blockSize
	if off+int64(len(p)) > at+blockSize {
		return b.r.ReadAt(p, off)
	}
	if b.kept == nil || b.at != at {
		b.at, b.kept = at, make([]byte, max(0, min(blockSize, b.size-at)))
		n, err := b.r.ReadAt(b.kept, at)
		if b.kept = b.kept[:n]; err != nil && err != io.EOF {
			return 0, err
		}
	}
	n := copy(p, b.kept[min(off-at, int64(len(b.kept))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// read returns n bytes at off, or as many as there are.
func read(r io.ReaderAt, off, n int64) []byte {
	if off < 0 || n <= 0 {
		return nil
	}
	p := make([]byte, n)
	got, _ := r.ReadAt(p, off)
	return p[:got]
}

// search is for what one file leads to.
type search struct {
	*Finder
	dir   string // that the file is in
	base  string // the file's name there
	found []toc.File
}

// add adds the regular file that a path leads to, if there is one, and returns it.
func (s *search) add(name string) (toc.File, bool) {
	if len(name) > toc.MaxName {
		return toc.File{}, false
	}
	file, err := s.image.Resolve(name, true)
	if err != nil || file.Type != toc.Regular {
		return toc.File{}, false
	}
	if len(s.found) < maxLeads && !slices.ContainsFunc(s.found, func(o toc.File) bool { return o.Inode == file.Inode }) {
		s.found = append(s.found, file)
	}
	return file, true
}

// learn adds a directory to those that are remembered.
func (f *Finder) learn(dirs *[]string, dir string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(*dirs) < maxDirs && !slices.Contains(*dirs, dir) {
		*dirs = append(*dirs, dir)
	}
}

// learned returns directories that are remembered.
func (f *Finder) learned(dirs *[]string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(*dirs)
}
