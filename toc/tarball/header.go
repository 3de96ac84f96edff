package tarball

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/granary-oci/granary/toc"
)

const (
	blockSize  = 512
	maxSpecial = 1 << 20 // bytes of a PAX header, a long name or a map of a sparse file
)

// block is a header: 512 bytes (POSIX.1-2024, pax, "ustar Interchange Format").
type block [blockSize]byte

func (b *block) zero() bool { return *b == block{} }

// The dialects of a header, by its magic.
type dialect int

const (
	v7 dialect = iota
	ustar
	star // Schilling's: ustar with a shorter prefix
	gnu
)

func (b *block) dialect() dialect {
	switch magic := string(b[257:265]); {
	case magic == "ustar  \x00":
		return gnu
	case magic[:6] == "ustar\x00" && string(b[508:512]) == "tar\x00":
		return star
	case magic[:6] == "ustar\x00":
		return ustar
	}
	return v7
}

// valid reports whether the header's checksum is right: the sum of its bytes, with
// the checksum itself as blanks. Some old programs took the bytes for signed.
func (b *block) valid() bool {
	var unsigned, signed int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	want, ok := octal(b[148:156])
	return ok && (want == unsigned || want == signed)
}

// header is what a block says of an entry.
type header struct {
	block      *block
	name, link string
	flag       byte // the type
	mode       int64
	uid, gid   int64
	size       int64
	modTime    time.Time
	major      int64
	minor      int64
}

// parse reads a block whose checksum is right.
func (b *block) parse() (h header, err error) {
	f := fields{b: b}
	h = header{
		block: b, name: text(b[0:100]), link: text(b[157:257]), flag: b[156],
		mode: f.number(100, 8), uid: f.number(108, 8), gid: f.number(116, 8), size: f.number(124, 12),
		modTime: time.Unix(f.number(136, 12), 0),
	}
	if b.dialect() != v7 {
		h.major, h.minor = f.number(329, 8), f.number(337, 8)
	}
	if prefix := b.prefix(); prefix != "" {
		h.name = prefix + "/" + h.name
	}
	if f.bad || h.size < 0 {
		return h, fmt.Errorf("%w: a header with a field that is no number", toc.ErrMalformed)
	}
	return h, nil
}

// prefix returns the directory that a name is to be read in.
func (b *block) prefix() string {
	switch b.dialect() {
	case ustar:
		return text(b[345:500])
	case star:
		return text(b[345:476])
	case gnu:
		// GNU has times there. Go before 1.8 wrote a prefix nevertheless
		// (golang.org/issue/12594), and its images are still about.
		times := fields{b: b}
		for _, at := range []int{345, 357} {
			if b[at] != 0 {
				times.number(at, 12)
			}
		}
		if s := text(b[345:500]); times.bad && ascii(s) {
			return s
		}
	}
	return ""
}

// fields reads numbers out of a block, and remembers whether one was none.
type fields struct {
	b   *block
	bad bool
}

func (f *fields) number(at, size int) int64 {
	n, ok := number(f.b[at : at+size])
	f.bad = f.bad || !ok
	return n
}

// number reads a number: octal digits, or, as GNU and STAR write those that do not
// fit, big-endian in two's complement behind a set bit.
func number(field []byte) (int64, bool) {
	if field[0]&0x80 == 0 {
		return octal(field)
	}
	n := int64(int8(field[0]<<1) >> 1) // the sign is the next bit
	for _, c := range field[1:] {
		if n > math.MaxInt64>>8 || n < math.MinInt64>>8 {
			return 0, false
		}
		n = n<<8 | int64(c)
	}
	return n, true
}

func octal(field []byte) (int64, bool) {
	s := text(bytes.Trim(field, " \x00"))
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 8, 63)
	return int64(n), err == nil
}

// text returns a field up to its first zero byte.
func text(field []byte) string {
	s, _, _ := bytes.Cut(field, []byte{0})
	return string(s)
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 || s[i] == 0 {
			return false
		}
	}
	return true
}
