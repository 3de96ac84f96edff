package layout

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

const (
	maxArchived = 1 << 17  // files, links and directories in an archive
	maxNames    = 32 << 20 // bytes of their names, and of what links lead to
	maxSymlinks = 16       // symlinks on the way to a file
)

// archive is a tar file with the files of a layout, which are read where they lie: its
// headers are read once, and again when it has changed.
type archive struct {
	path string

	mu      sync.Mutex
	version string // of the file that was read
	files   map[string]span
	sums    sums
}

// span is a file of a layout: an entry of the archive, or what was made from others.
type span struct {
	entry      string // its name in the archive, or that of the entry which it was made from
	base, size int64
	made       []byte // nil for an entry
}

// from returns the bytes, of which those that were not made are in the file.
func (s span) from(file io.ReaderAt) *io.SectionReader {
	if s.made != nil {
		file = bytes.NewReader(s.made)
	}
	return io.NewSectionReader(file, s.base, s.size)
}

// open opens a file of the archive, for the caller to close. The error is an [*unsummed] if
// something is to be found out first.
func (a *archive) open(name string) (f opened, err error) {
	file, info, err := a.openWhole()
	if err != nil {
		return opened{}, err
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
	return opened{File: file, span: at, stamp: stamp(info), version: version(info)}, nil
}

func (a *archive) openWhole() (*os.File, fs.FileInfo, error) {
	file, info, err := openRegular(func(flag int) (*os.File, error) { return os.OpenFile(a.path, flag, 0) })
	if err != nil {
		return nil, nil, a.explain(err)
	}
	return file, info, nil
}

// entry returns what a file of the layout is called in the archive, as far as that has been
// read.
func (a *archive) entry(name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.files[name]; at.entry != "" {
		return at.entry
	}
	return name
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

// read returns the files of the layout. What was read of a version is not read again.
func (a *archive) read(file *os.File, info fs.FileInfo) (map[string]span, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := version(info)
	if v != "" && v == a.version {
		return a.files, nil
	}
	found, err := readArchive(file, info.Size())
	if err == nil && found.isSaved() {
		found.files, err = a.saved(found, file, sumsKey(info))
	}
	var later *unsummed
	switch {
	case err == nil:
		a.files, a.version = found.files, v
		return a.files, nil
	case chunk.IsCorrupt(err), errors.As(err, &later):
		return nil, err
	case away(err):
		return nil, a.explain(err)
	}
	return nil, &FormatError{a.path, err}
}

// corrupt says that an entry does not have the digest that it should have.
func (a *archive) corrupt(entry string, blob digest.Digest, size int64, reason string) error {
	return &chunk.CorruptError{Source: Origin + " " + path.Join(a.path, entry), Ref: chunk.Ref{Blob: blob, Total: size, Size: size}, Reason: reason}
}

// found is what is in an archive.
type found struct {
	files map[string]span   // regular ones
	links map[string]string // symlinks, and the names that they lead to
	names int               // bytes
}

// readArchive returns what is in a tar of a size. No name leads out of it.
func readArchive(file io.ReadSeeker, size int64) (*found, error) {
	all := &found{files: make(map[string]span), links: make(map[string]string)}
	r := tar.NewReader(file)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			if how := compressed(file); n == 0 && how != "" {
				err = fmt.Errorf("it is compressed with %s: decompress it first, for its files are read where they lie", how)
			}
			return nil, fmt.Errorf("the archive cannot be read beyond its first %d files: %w", n, err)
		}
		if n == maxArchived {
			return nil, fmt.Errorf("the archive has more than %d files", maxArchived)
		}
		// The reader reads headers by blocks and nothing ahead, so this is where the content begins.
		base, err := file.Seek(0, io.SeekCurrent)
		if err == nil {
			err = all.add(h, base, size)
		}
		if err != nil {
			return nil, err
		}
	}
}

// add adds an entry. Of several with one name the last counts, as when they are unpacked.
func (all *found) add(h *tar.Header, base, size int64) error {
	name := path.Clean(h.Name)
	if !fs.ValidPath(name) {
		return fmt.Errorf("%q leads out of the archive", h.Name)
	}
	if all.names += len(h.Name) + len(h.Linkname); all.names > maxNames {
		return fmt.Errorf("the names in the archive have more than %d bytes", maxNames)
	}
	switch {
	case h.Typeflag == tar.TypeDir:
		return nil
	case ofLayout(name) && (h.Typeflag != tar.TypeReg || isSparse(h)):
		return fmt.Errorf("%q is no regular file", h.Name)
	}
	delete(all.files, name)
	delete(all.links, name)
	switch h.Typeflag {
	case tar.TypeReg:
		if isSparse(h) {
			return nil // what is in the archive is not what is in the file
		}
		if h.Size > size-base {
			return fmt.Errorf("the archive ends within %q", h.Name)
		}
		all.files[name] = span{entry: name, base: base, size: h.Size}
	case tar.TypeSymlink:
		all.links[name] = path.Clean(h.Linkname)
		if !path.IsAbs(h.Linkname) {
			all.links[name] = path.Join(path.Dir(name), h.Linkname)
		}
	case tar.TypeLink: // to what has that name now, whatever gets it later
		to := path.Clean(h.Linkname)
		if at, ok := all.files[to]; ok {
			all.files[name] = at
		} else if further, ok := all.links[to]; ok {
			all.links[name] = further
		}
	}
	return nil
}

// isSparse reports whether a file has holes, which the archive leaves out.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// find returns a file by a name that may be a link.
func (all *found) find(name string) (span, error) {
	at := path.Clean(name)
	for range maxSymlinks {
		if !fs.ValidPath(at) {
			return span{}, fmt.Errorf("%q leads out of the archive", name)
		}
		if f, ok := all.files[at]; ok {
			return f, nil
		}
		to, ok := all.links[at]
		if !ok {
			return span{}, fmt.Errorf("%q is not in the archive", name)
		}
		at = to
	}
	return span{}, fmt.Errorf("%q is a link that leads to more than %d others", name, maxSymlinks)
}

// ofLayout reports whether a file is one that the specification knows.
func ofLayout(name string) bool {
	return name == ocispec.ImageLayoutFile || name == ocispec.ImageIndexFile || strings.HasPrefix(name, ocispec.ImageBlobsDir+"/")
}

// compressions are the ways in which archives and layers are compressed, by what they begin
// with.
var compressions = map[string]string{"\x1f\x8b": "gzip", "\x28\xb5\x2f\xfd": "zstd", "BZh": "bzip2", "\xfd7zXZ\x00": "xz"}

// compressed returns how a file is compressed, "" for not at all.
func compressed(file io.ReadSeeker) string {
	p := make([]byte, 6)
	_, err := file.Seek(0, io.SeekStart)
	if err == nil {
		_, err = io.ReadFull(file, p)
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return ""
	}
	for begin, how := range compressions {
		if bytes.HasPrefix(p, []byte(begin)) {
			return how
		}
	}
	return ""
}
