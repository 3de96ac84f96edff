package estargz

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/granary-oci/granary/toc"
)

// A footer is an empty member of gzip (RFC 1952), the layer's last bytes, that says in
// its header's extra field where the member with the table begins. Two kinds do:
//
//	eStargz, 51 bytes                    stargz, 47 bytes
//	 0  10  1f 8b 08 04, 4 × 00, 00 ff    0  10  1f 8b 08 04, 4 × 00, 00 ff
//	10   2  26: length of the field      10   2  22: length of the field
//	12   2  "SG": subfield's name
//	14   2  22: length of the subfield
//	16  16  offset, in hexadecimal       12  16  offset, in hexadecimal
//	32   6  "STARGZ"                     28   6  "STARGZ"
//	38   5  01 00 00 ff ff: last block,  34   5  01 00 00 ff ff
//	        stored, of no bytes
//	43   8  00: CRC-32 and length        39   8  00
//
// and one says that the table is in another image:
//
//	eStargz with an external table, 46 bytes
//	 0  10  1f 8b 08 04, 4 × 00, 00 ff
//	10   2  21: length of the field
//	12   2  "SG": subfield's name
//	14   2  17: length of the subfield
//	16  17  "STARGZEXTERNALTOC"
//	33   5  01 00 00 ff ff
//	38   8  00
//
// Numbers are little-endian. The table's member ends where the footer begins.
const (
	header  = "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"
	trailer = "\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"
	magic   = "STARGZ"
	digits  = 16 // of an offset

	stargzHead   = header + "\x16\x00"
	estargzHead  = header + "\x1a\x00SG\x16\x00"
	externalFoot = header + "\x15\x00SG\x11\x00STARGZEXTERNALTOC" + trailer
)

// parseFooter returns what the footer at the end of tail says, and its length. What is
// to hold for offset is not checked but that it is none below 0.
func parseFooter(tail []byte) (offset, size int64, err error) {
	if bytes.HasSuffix(tail, []byte(externalFoot)) {
		return 0, 0, fmt.Errorf("%w: the table is in another image", toc.ErrFormat)
	}
	for _, head := range []string{estargzHead, stargzHead} {
		size := len(head) + digits + len(magic) + len(trailer)
		if len(tail) < size {
			continue
		}
		foot := tail[len(tail)-size:]
		if !bytes.HasPrefix(foot, []byte(head)) || !bytes.HasSuffix(foot, []byte(magic+trailer)) {
			continue
		}
		text := foot[len(head) : len(head)+digits]
		offset, err := strconv.ParseUint(string(text), 16, 63)
		if err != nil {
			return 0, 0, fmt.Errorf("%w: a footer with the offset %q", toc.ErrMalformed, text)
		}
		return int64(offset), int64(size), nil
	}
	return 0, 0, fmt.Errorf("%w: no footer", toc.ErrFormat)
}
