package profile

import (
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// near is how far apart reads of a file may be, in bytes, to be remembered as one.
const near = 64 << 10

// Recorder takes note of what one run reads. The zero value is ready to use; it is safe
// for concurrent use.
type Recorder struct {
	mu    sync.Mutex
	at    map[fileKey]int
	files []File
}

// Read takes note of the reading of size > 0 bytes at off of a file of a layer, for which
// contents were read from some places of that, if they are known. What is more than a
// profile holds is passed over.
func (r *Recorder) Read(layer digest.Digest, path string, off, size int64, from ...Place) {
	if off < 0 || size <= 0 || size > maxFile || off > maxFile-size || path == "" || len(path) > maxPath {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.file(fileKey{layer, path})
	if f == nil {
		return
	}
	f.Ranges = joinWithin(insert(f.Ranges, Range{off, size}), near)
	if len(f.Ranges) > maxRanges {
		f.Ranges = join(f.Ranges)
	}
	f.Places = places(slices.Concat(f.Places, from))
}

// Opened takes note that a file was opened whose content is here: what of it is read
// nobody knows, but it is likely to be what other runs have read.
func (r *Recorder) Opened(layer digest.Digest, path string) {
	if path == "" || len(path) > maxPath {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.file(fileKey{layer, path})
}

// file returns the record of a file, or nil if there are too many. r.mu is held.
func (r *Recorder) file(key fileKey) *File {
	i, ok := r.at[key]
	if !ok {
		if len(r.files) == maxFiles {
			return nil
		}
		if r.at == nil {
			r.at = make(map[fileKey]int)
		}
		i = len(r.files)
		r.at[key] = i
		r.files = append(r.files, File{Layer: key.layer, Path: key.path})
	}
	return &r.files[i]
}

// insert puts a range where it belongs.
func insert(all []Range, r Range) []Range {
	i, _ := slices.BinarySearchFunc(all, r.Offset, func(a Range, off int64) int { return int(min(max(a.Offset-off, -1), 1)) })
	return slices.Insert(slices.Clone(all), i, r)
}

// Files returns what was read, in the order of the first reads.
func (r *Recorder) Files() []File {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.files)
}

// Len returns how many files were read.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.files)
}
