package tarball

import (
	"fmt"
	"time"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/tarhead"
)

const (
	blockSize  = tarhead.BlockSize
	maxSpecial = 1 << 20 // bytes of a PAX header, a long name or a map of a sparse file
)

// block is a header (POSIX.1-2024, pax, "ustar Interchange Format").
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

func (b *block) valid() bool { return tarhead.Valid((*[blockSize]byte)(b)) }

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
		block: b, name: tarhead.Text(b[0:100]), link: tarhead.Text(b[157:257]), flag: b[156],
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
		return tarhead.Text(b[345:500])
	case star:
		return tarhead.Text(b[345:476])
	case gnu:
		// GNU has times there. Go before 1.8 wrote a prefix nevertheless
		// (golang.org/issue/12594), and its images are still about.
		times := fields{b: b}
		for _, at := range []int{345, 357} {
			if b[at] != 0 {
				times.number(at, 12)
			}
		}
		if s := tarhead.Text(b[345:500]); times.bad && ascii(s) {
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
	n, ok := tarhead.Number(f.b[at : at+size])
	f.bad = f.bad || !ok
	return n
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 || s[i] == 0 {
			return false
		}
	}
	return true
}
