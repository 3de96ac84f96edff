package recipe

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// A recipe is stored as, numbers as varints (encoding/binary) of the fewest bytes:
//
//	 8 bytes  "GRNRCPE" and the version, 1
//	32 bytes  digest of the blob
//	32 bytes  digest of the tar
//	          size of the blob
//	 1 byte   family of the encoder
//	 1 byte   its level, in two's complement
//	          how many members there are
//	          the members
//	          size of the tail
//	          the tail
//
// and a member as:
//
//	size of what is in it
//	twice the size of its header, or 0 for the header of the member before;
//	and 1 more if it was flushed before it was closed
//	the header
const (
	magic    = "GRNRCPE\x01"
	headSize = len(magic) + 2*len(toc.Digest{})
)

// Encode returns the recipe as it is stored. The same recipe gives the same bytes. The error
// wraps [toc.ErrLimit] when they would be more than MaxSize.
func (r *Recipe) Encode() ([]byte, error) {
	p := append(make([]byte, 0, 2*headSize), magic...)
	p = append(p, r.Blob[:]...)
	p = append(p, r.DiffID[:]...)
	p = binary.AppendUvarint(p, uint64(r.Size))
	p = append(p, byte(r.Encoder.Family), byte(int8(r.Encoder.Level)))
	p = binary.AppendUvarint(p, uint64(len(r.Members)))
	var last []byte
	for _, m := range r.Members {
		p, last = m.append(p, last), m.Header
	}
	p = append(binary.AppendUvarint(p, uint64(len(r.Tail))), r.Tail...)
	if len(p) > MaxSize {
		return nil, fmt.Errorf("recipe: %w: %d bytes", toc.ErrLimit, len(p))
	}
	return p, nil
}

func (m Member) append(p, last []byte) []byte {
	p = binary.AppendUvarint(p, uint64(m.Size))
	header := m.Header
	if bytes.Equal(header, last) {
		header = nil
	}
	n := uint64(len(header)) << 1
	if m.Flushed {
		n |= 1
	}
	return append(binary.AppendUvarint(p, n), header...)
}

// Decode reads what Encode returned, and nothing else. The error wraps [toc.ErrFormat], or
// [toc.ErrMalformed], or [toc.ErrLimit] when the encoder is not known here, as that of a
// newer Granary. It keeps nothing of p.
func Decode(p []byte) (*Recipe, error) {
	if len(p) < len(magic) || string(p[:len(magic)]) != magic {
		return nil, fmt.Errorf("recipe: %w", toc.ErrFormat)
	}
	if len(p) < headSize || len(p) > MaxSize {
		return nil, malformed("%d bytes", len(p))
	}
	in := &input{p: bytes.Clone(p)}
	r := in.recipe()
	if in.short || len(in.p) > 0 {
		return nil, malformed("it does not end where its parts do")
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if again, err := r.Encode(); err != nil || !bytes.Equal(again, p) {
		return nil, malformed("its parts have more bytes than they need")
	}
	return r, nil
}

// input is what is left of an encoded recipe. What is not there is zero.
type input struct {
	p     []byte
	short bool // something was not there
}

func (in *input) recipe() *Recipe {
	in.next(uint64(len(magic)))
	r := &Recipe{Blob: in.digest(), DiffID: in.digest(), Size: int64(in.number())}
	if b := in.next(2); len(b) == 2 {
		r.Encoder = Encoder{Family(b[0]), int(int8(b[1]))}
	}
	count := in.number()
	if count > maxMembers {
		in.short = true
		return r
	}
	r.Members = make([]Member, count)
	var last []byte
	for i := range r.Members {
		size, n := int64(in.number()), in.number()
		if header := in.next(n >> 1); len(header) > 0 {
			last = header
		}
		r.Members[i] = Member{Header: last, Size: size, Flushed: n&1 != 0}
	}
	r.Tail = in.next(in.number())
	return r
}

func (in *input) digest() (d toc.Digest) {
	copy(d[:], in.next(uint64(len(d))))
	return d
}

func (in *input) number() uint64 {
	n, size := binary.Uvarint(in.p)
	if size <= 0 {
		in.short = true
		return 0
	}
	in.p = in.p[size:]
	return n
}

func (in *input) next(n uint64) (b []byte) {
	if n > uint64(len(in.p)) {
		in.short = true
		return nil
	}
	b, in.p = in.p[:n:n], in.p[n:]
	return b
}
