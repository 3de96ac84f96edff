package zstdchunked

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/granary-oci/granary/toc"
)

// Prefixes of the annotations of the two dialects, and what follows them.
const (
	storagePrefix = "io.github.containers.zstd-chunked."
	stargzPrefix  = "io.containers.zstd-chunked."

	checksumKey  = "manifest-checksum" // SHA-256 of the table as it is compressed
	positionKey  = "manifest-position" // offset, size, inflated size, 1: decimal, with colons
	tarSplitKey  = "tarsplit-position" // offset, size, inflated size
	tableType    = 1                   // the only one there is: JSON
	frameHeader  = 8                   // bytes of a skippable frame's header
	skippable    = "\x50\x2a\x4d\x18"  // the first of them: a skippable frame's magic
	storageMagic = "GNUlInUx"
	stargzMagic  = "GnUlInUx"
)

// A footer is the layer's last frame, which decoders skip. Numbers are little-endian.
//
//	containers/storage, 72 bytes              stargz-snapshotter, 48 bytes
//	 0  4  50 2a 4d 18                         0  4  50 2a 4d 18
//	 4  4  64: the rest's length               4  4  40: the rest's length
//	 8  8  offset of the compressed table      8  8  offset of the compressed table
//	16  8  its size                           16  8  its size
//	24  8  its size when inflated             24  8  its size when inflated
//	32  8  1: type of the table               32  8  1: type of the table
//	40  8  offset of the tar-split
//	48  8  its size
//	56  8  its size when inflated
//	64  8  "GNUlInUx"                         40  8  "GnUlInUx"
const (
	storageFooter = 72
	stargzFooter  = 48
)

// run is something compressed in the layer, without its frame's header.
type run struct{ offset, size, rawSize int64 }

// position is where a layer has its table, and the copy of the tar's headers if there
// is one.
type position struct{ table, tarSplit run }

// notes are what a manifest says of a layer's table.
type notes struct {
	at          position   // zero if it is not said
	packed, raw toc.Digest // of the table, compressed and inflated
}

// annotated returns what a layer's annotations say. Those of both dialects may be
// there, but not differ.
func annotated(annotations map[string]string) (n notes, err error) {
	if n.raw, err = toc.AnnotatedDigest(annotations); err != nil {
		return n, err
	}
	for _, prefix := range []string{storagePrefix, stargzPrefix} {
		table, err := parseRun(annotations, prefix+positionKey, tableType)
		if err != nil {
			return n, err
		}
		if n.at.table != (run{}) && table != (run{}) && n.at.table != table {
			return n, fmt.Errorf("annotation %s: %w: another one gives another position", prefix+positionKey, toc.ErrMalformed)
		}
		if table != (run{}) {
			n.at.table = table
		}
		if err := n.checksum(annotations, prefix+checksumKey); err != nil {
			return n, err
		}
	}
	n.at.tarSplit, err = parseRun(annotations, storagePrefix+tarSplitKey, -1)
	if err == nil && n.at.table == (run{}) {
		n.at.tarSplit = run{} // the footer has both
	}
	return n, err
}

func (n *notes) checksum(annotations map[string]string, key string) error {
	value := annotations[key]
	if value == "" {
		return nil
	}
	d, err := toc.ParseDigest(value)
	switch {
	case err != nil:
		return fmt.Errorf("annotation %s: %w: %w", key, toc.ErrMalformed, err)
	case !d.Known():
		return fmt.Errorf("annotation %s: %w: %q is no SHA-256", key, toc.ErrMalformed, value)
	case n.packed.Known() && n.packed != d:
		return fmt.Errorf("annotation %s: %w: another one gives another digest", key, toc.ErrMalformed)
	}
	n.packed = d
	return nil
}

// parseRun returns what an annotation says, which ends with kind if that is not
// negative; zero if it is not there.
func parseRun(annotations map[string]string, key string, kind int64) (run, error) {
	value := annotations[key]
	if value == "" {
		return run{}, nil
	}
	want := 3
	if kind >= 0 {
		want++
	}
	fields := strings.Split(value, ":")
	numbers := make([]int64, len(fields))
	ok := len(fields) == want
	for i := 0; i < len(fields) && ok; i++ {
		n, err := strconv.ParseUint(fields[i], 10, 63)
		numbers[i], ok = int64(n), err == nil
	}
	if !ok || kind >= 0 && numbers[3] != kind {
		return run{}, fmt.Errorf("annotation %s: %w: %.100q", key, toc.ErrMalformed, value)
	}
	return run{numbers[0], numbers[1], numbers[2]}, nil
}

// readFooter returns what the layer's last bytes say.
func readFooter(r io.ReaderAt, size int64) (position, error) {
	tail := make([]byte, min(size, storageFooter))
	if n, err := r.ReadAt(tail, size-int64(len(tail))); n < len(tail) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return position{}, fmt.Errorf("read at %d: %w", size-int64(len(tail)), err)
	}
	return parseFooter(tail)
}

// parseFooter returns what the footer at the end of tail says.
func parseFooter(tail []byte) (at position, err error) {
	if n, ok := footer(tail, storageFooter, storageMagic); ok {
		at.table, at.tarSplit = run{n[0], n[1], n[2]}, run{n[4], n[5], n[6]}
		return at, checkType(n[3])
	}
	if n, ok := footer(tail, stargzFooter, stargzMagic); ok {
		at.table = run{n[0], n[1], n[2]}
		return at, checkType(n[3])
	}
	return at, fmt.Errorf("%w: there is none", toc.ErrFormat)
}

func checkType(kind int64) error {
	if kind != tableType {
		return fmt.Errorf("%w: a table of type %d", toc.ErrMalformed, kind)
	}
	return nil
}

// footer returns the numbers of a footer of a size. Those of more than 63 bits, which
// nothing can be as large as, become the largest of these.
func footer(tail []byte, size int, magic string) (numbers []int64, ok bool) {
	if len(tail) < size {
		return nil, false
	}
	foot := tail[len(tail)-size:]
	rest := binary.LittleEndian.Uint32(foot[4:])
	if !bytes.HasPrefix(foot, []byte(skippable)) || int(rest) != size-frameHeader || !bytes.HasSuffix(foot, []byte(magic)) {
		return nil, false
	}
	for p := foot[frameHeader : size-len(magic)]; len(p) > 0; p = p[8:] {
		numbers = append(numbers, int64(min(binary.LittleEndian.Uint64(p), math.MaxInt64)))
	}
	return numbers, true
}

// check reports what of a position in a layer of size bytes cannot be.
func (at *position) check(size int64) error {
	table, split := at.table, at.tarSplit
	switch {
	case table.size > toc.MaxPackedTOC || table.rawSize > toc.MaxTOCSize:
		return fmt.Errorf("%w: a table of %d bytes, %d when inflated", toc.ErrLimit, table.size, table.rawSize)
	case !table.in(size):
		return fmt.Errorf("%w: a table of %d bytes at %d of a layer of %d", toc.ErrMalformed, table.size, table.offset, size)
	case split == run{}:
		return nil
	case !split.in(size) || split.offset-frameHeader < table.offset+table.size:
		return fmt.Errorf("%w: a tar-split of %d bytes at %d of a layer of %d", toc.ErrMalformed, split.size, split.offset, size)
	}
	return nil
}

// in reports whether r is in a layer of size bytes, behind its frame's header.
func (r run) in(size int64) bool {
	return r.offset >= frameHeader && r.size > 0 && r.offset <= size && r.size <= size-r.offset
}
