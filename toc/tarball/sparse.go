package tarball

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/granary-oci/granary/toc"
)

// Keys of the PAX records of sparse files (GNU tar manual, "Storing Sparse Files").
const (
	sparseMajor  = "GNU.sparse.major"
	sparseMinor  = "GNU.sparse.minor"
	sparseName   = "GNU.sparse.name"
	sparseSize   = "GNU.sparse.size"
	sparseReal   = "GNU.sparse.realsize"
	sparseCount  = "GNU.sparse.numblocks"
	sparseMap    = "GNU.sparse.map"
	sparseOffset = "GNU.sparse.offset"
	sparseLength = "GNU.sparse.numbytes"
)

// run is a part of a file that is not a hole.
type run struct{ offset, size int64 }

var errSparse = fmt.Errorf("%w: a map of a sparse file that makes no sense", toc.ErrMalformed)

// runs returns the parts of a file of which the archive has content, and makes of
// the header's size that of the file. What a sparse file's content begins with is
// read when it is its map.
func (w *walker) runs(h *header, r records) ([]run, error) {
	stored := h.size
	var all []run
	var err error
	switch version, known := r.sparse(); {
	case h.flag == 'S':
		all, err = w.oldSparse(h)
	case !known:
		return []run{{0, stored}}, nil
	default:
		if err = r.amendSparse(h); err != nil {
			return nil, err
		}
		if version == 1 {
			before := w.tape.pos
			all, err = w.sparseContent(stored)
			stored -= w.tape.pos - before
		} else {
			all, err = parseMap(strings.Split(r[sparseMap], ","), r[sparseCount])
		}
	}
	if err != nil {
		return nil, err
	}
	return all, checkRuns(all, h.size, stored)
}

// sparse returns the major version of the file's map, if the records say that it has
// one. The first versions did not say so.
func (r records) sparse() (major int, ok bool) {
	switch version := r[sparseMajor] + "." + r[sparseMinor]; version {
	case "1.0":
		return 1, true
	case "0.0", "0.1":
		return 0, true
	case ".":
		return 0, r[sparseMap] != ""
	}
	return 0, false
}

func (r records) amendSparse(h *header) error {
	if name := r[sparseName]; name != "" {
		h.name = name
	}
	size := r[sparseSize]
	if size == "" {
		size = r[sparseReal]
	}
	if size == "" {
		return nil
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n < 0 {
		return errSparse
	}
	h.size = n
	return nil
}

// checkRuns reports runs that are not in order inside a file of size bytes, or not
// those of the stored bytes.
func checkRuns(all []run, size, stored int64) error {
	end := int64(0)
	for _, r := range all {
		if r.offset < end || r.size < 0 || r.offset > size || r.size > size-r.offset {
			return errSparse
		}
		end = r.offset + r.size
		stored -= r.size
	}
	if stored != 0 {
		return errSparse
	}
	return nil
}

// oldSparse reads the map in a header of GNU's own type: four runs, and blocks of 21
// more while the last one says that there are.
func (w *walker) oldSparse(h *header) ([]run, error) {
	if h.block.dialect() != gnu {
		return nil, errSparse
	}
	f := fields{b: h.block}
	h.size = f.number(483, 12)
	all := f.oldRuns(nil, 386, 4)
	var more block
	for extended := h.block[482]; extended != 0 && !f.bad; extended = more[504] {
		if len(all) > maxSpecial/24 {
			return nil, fmt.Errorf("%w: a sparse file of more than %d runs", toc.ErrLimit, len(all))
		}
		if err := w.tape.must(more[:]); err != nil {
			return nil, err
		}
		f.b = &more
		all = f.oldRuns(all, 0, 21)
	}
	if f.bad || h.size < 0 {
		return nil, errSparse
	}
	return all, nil
}

func (f *fields) oldRuns(all []run, at, n int) []run {
	for i := range n {
		entry := at + 24*i
		if f.b[entry] == 0 {
			break
		}
		all = append(all, run{f.number(entry, 12), f.number(entry+12, 12)})
	}
	return all
}

// sparseContent reads the map that the content of a file of version 1.0 begins with:
// decimal numbers in lines, how many runs and then the runs, in whole blocks.
func (w *walker) sparseContent(stored int64) ([]run, error) {
	var text []byte
	for lines, want := 0, 1; lines < want; {
		if stored < blockSize || len(text) >= maxSpecial {
			return nil, errSparse
		}
		var b block
		if err := w.tape.must(b[:]); err != nil {
			return nil, err
		}
		stored -= blockSize
		lines += bytes.Count(b[:], []byte("\n"))
		text = append(text, b[:]...)
		if want == 1 && lines > 0 {
			count, _, _ := bytes.Cut(text, []byte("\n"))
			n, err := strconv.ParseUint(string(count), 10, 31)
			if err != nil || n > maxSpecial {
				return nil, errSparse
			}
			want += 2 * int(n)
		}
	}
	lines := strings.Split(string(text), "\n")
	n, err := strconv.Atoi(lines[0])
	if err != nil {
		return nil, errSparse
	}
	return parseMap(lines[1:1+2*n], lines[0])
}

// parseMap reads offsets and sizes in turn, of as many runs as count says.
func parseMap(numbers []string, count string) ([]run, error) {
	if len(numbers) == 1 && numbers[0] == "" {
		numbers = nil
	}
	n, err := strconv.ParseUint(count, 10, 31)
	if err != nil || len(numbers) != 2*int(n) {
		return nil, errSparse
	}
	all := make([]run, n)
	for i := range all {
		offset, err := strconv.ParseInt(numbers[2*i], 10, 64)
		size, err2 := strconv.ParseInt(numbers[2*i+1], 10, 64)
		if err != nil || err2 != nil {
			return nil, errSparse
		}
		all[i] = run{offset, size}
	}
	return all, nil
}
