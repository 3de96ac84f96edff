package squashfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"

	"github.com/granary-oci/granary/toc"
)

// checkXZ refuses images whose blocks may have filters for machine code. The options
// of xz are a metadata block of 8 bytes behind the superblock: the dictionary's size
// and the filters (u32 each).
func checkXZ(r io.ReaderAt, sb superblock) error {
	if sb.flags&hasOptions == 0 {
		return nil
	}
	p, err := readAt(r, superblockSize, 2+8)
	if err != nil {
		return err
	}
	if filters := le.Uint32(p[6:]); filters != 0 {
		return fmt.Errorf("compressed with xz and filters %#x for machine code, which only the kernel reads, by mounting the image: %w", filters, toc.ErrUnsupported)
	}
	return nil
}

// A block is a stream of xz (xz-file-format 1.1.0, sections 2 and 3): a header of 12
// bytes, and a block whose header, of 4 × (1 + its first byte) bytes, must end with the
// filter LZMA2, of which this is the field.
const (
	xzHeader   = 12
	xzMagic    = "\xfd7zXZ\x00"
	lzma2      = "\x21\x01" // its ID, and the size of its properties: the dictionary's size
	minXZBlock = 8
)

var errXZ = errors.New("no xz stream with the filter LZMA2 alone")

// unpackXZ looks for the LZMA2 data itself: the dictionary that a stream claims to
// need may have 4 GiB, and none needs more than what it unpacks to.
func unpackXZ(packed []byte, limit int) ([]byte, error) {
	if len(packed) < xzHeader+minXZBlock || !bytes.HasPrefix(packed, []byte(xzMagic)) {
		return nil, malformed(errXZ)
	}
	header := packed[xzHeader:]
	size, flags := 4*(1+int(header[0])), header[1]
	if size > len(header) || header[0] == 0 {
		return nil, malformed(errXZ)
	}
	filter := header[2:size]
	for _, bit := range []byte{0x40, 0x80} { // the sizes are given
		if flags&bit != 0 {
			filter = skipNumber(filter)
		}
	}
	if flags&0x3f != 0 || !bytes.HasPrefix(filter, []byte(lzma2)) {
		return nil, malformed(errXZ)
	}
	r, err := lzma.Reader2Config{DictCap: max(limit, lzma.MinDictCap)}.NewReader2(bytes.NewReader(header[size:]))
	if err != nil {
		return nil, malformed(err)
	}
	return readAll(r, limit)
}

// skipNumber skips a multibyte integer (section 1.2).
func skipNumber(p []byte) []byte {
	for len(p) > 0 && p[0]&0x80 != 0 {
		p = p[1:]
	}
	return p[min(1, len(p)):]
}
