package layout

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// maxArchived is how many files and directories an archive may have.
const maxArchived = 1 << 17

// archive is a tar file with the files of a layout, which are read where they lie: its
// headers are read once, and again when it has changed.
type archive struct {
	path string

	mu      sync.Mutex
	version string // of the file that was read
	files   map[string]span
}

// span is where a file lies in an archive.
type span struct{ base, size int64 }

// open opens a file of the archive, for the caller to close.
func (a *archive) open(name string) (f opened, err error) {
	file, info, err := openRegular(func(flag int) (*os.File, error) { return os.OpenFile(a.path, flag, 0) })
	if err != nil {
		return opened{}, a.explain(err)
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	files, err := a.read(file, info)
	if err != nil {
		return opened{}, err
	}
	at, ok := files[name]
	if !ok {
		return opened{}, fmt.Errorf("layout: %s: %w", path.Join(a.path, name), chunk.ErrNotFound)
	}
	return opened{file, at.base, at.size, stamp(info), version(info)}, nil
}

// explain tells an archive that is not there from one that cannot be read.
func (a *archive) explain(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err // the path is ours
	}
	if errors.Is(err, fs.ErrNotExist) || away(err) {
		return &upstream.NoAnswerError{Subject: "layout " + a.path, Err: err}
	}
	return fmt.Errorf("layout: %s: %w", a.path, err)
}

// read returns what is in the archive. What was read of a version is not read again.
func (a *archive) read(file *os.File, info fs.FileInfo) (map[string]span, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := version(info)
	if v != "" && v == a.version {
		return a.files, nil
	}
	files, err := readArchive(file, info.Size())
	if err != nil && away(err) {
		return nil, a.explain(err)
	}
	if err != nil {
		return nil, &FormatError{a.path, err}
	}
	a.files, a.version = files, v
	return files, nil
}

// readArchive returns where the files of a layout lie in a tar of a size. Other files may be
// in it, but none with a name that leads out.
func readArchive(file io.ReadSeeker, size int64) (map[string]span, error) {
	files := make(map[string]span)
	r := tar.NewReader(file)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the archive cannot be read beyond its first %d files: %w", n, err)
		}
		if n == maxArchived {
			return nil, fmt.Errorf("the archive has more than %d files", maxArchived)
		}
		name := path.Clean(h.Name)
		if !fs.ValidPath(name) {
			return nil, fmt.Errorf("%q leads out of the archive", h.Name)
		}
		if !ofLayout(name) || h.Typeflag == tar.TypeDir {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return nil, fmt.Errorf("%q is no regular file", h.Name)
		}
		// The reader reads headers by blocks and nothing ahead, so this is where the content begins.
		base, err := file.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Size > size-base {
			return nil, fmt.Errorf("the archive ends within %q", h.Name)
		}
		files[name] = span{base, h.Size} // of several the last counts, as when they are unpacked
	}
}

// ofLayout reports whether a file is one that the specification knows.
func ofLayout(name string) bool {
	return name == ocispec.ImageLayoutFile || name == ocispec.ImageIndexFile || strings.HasPrefix(name, ocispec.ImageBlobsDir+"/")
}
