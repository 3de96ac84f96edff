package wire

import (
	"errors"
	"fmt"
	"math"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protowire"

	// The algorithms whose digests are valid.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// writer makes the header of a message. Fields of their zero value are left out.
type writer []byte

func (w *writer) bytes(n protowire.Number, p []byte) {
	if len(p) > 0 {
		*w = protowire.AppendBytes(protowire.AppendTag(*w, n, protowire.BytesType), p)
	}
}

func (w *writer) text(n protowire.Number, s string) { w.bytes(n, []byte(s)) }

func (w *writer) number(n protowire.Number, v int64) {
	if v != 0 {
		*w = protowire.AppendVarint(protowire.AppendTag(*w, n, protowire.VarintType), uint64(v))
	}
}

func (w *writer) flag(n protowire.Number, v bool) {
	if v {
		w.number(n, 1)
	}
}

// field is one field of a header that is being read.
type field struct {
	number protowire.Number
	kind   protowire.Type
	p      []byte // of a field of bytes
	v      uint64 // of a varint
	err    *error // of the whole message, which the first fault sets
}

var errMalformed = errors.New("wire: malformed header")

// read calls each for the fields of a header, in order, until one is wrong.
func read(header []byte, each func(f field)) error {
	var err error
	for len(header) > 0 && err == nil {
		number, kind, n := protowire.ConsumeTag(header)
		if n < 0 {
			return errMalformed
		}
		header = header[n:]
		f := field{number: number, kind: kind, err: &err}
		switch kind {
		case protowire.BytesType:
			f.p, n = protowire.ConsumeBytes(header)
		case protowire.VarintType:
			f.v, n = protowire.ConsumeVarint(header)
		default:
			n = protowire.ConsumeFieldValue(number, kind, header)
		}
		if n < 0 {
			return errMalformed
		}
		header = header[n:]
		each(f)
	}
	return err
}

func (f field) fail(format string, args ...any) {
	if *f.err == nil {
		*f.err = fmt.Errorf("wire: field %d: "+format, append([]any{f.number}, args...)...)
	}
}

func (f field) bytes(most int) []byte {
	if f.kind != protowire.BytesType || len(f.p) > most {
		f.fail("not at most %d bytes", most)
		return nil
	}
	return f.p
}

func (f field) text(most int) string { return string(f.bytes(most)) }

// number returns a number from 0 to most.
func (f field) number64(most int64) int64 {
	if f.kind != protowire.VarintType || f.v > uint64(most) {
		f.fail("not a number up to %d", most)
		return 0
	}
	return int64(f.v)
}

func (f field) int(most int) int { return int(f.number64(int64(most))) }
func (f field) flag() bool       { return f.number64(math.MaxInt64) != 0 }

func (f field) digest() digest.Digest {
	d := digest.Digest(f.text(maxDigest))
	if *f.err == nil && d.Validate() != nil {
		f.fail("not a digest")
	}
	return d
}

// room reports whether a list that has n entries may have one more.
func (f field) room(n, most int) bool {
	if n >= most {
		f.fail("more than %d of them", most)
		return false
	}
	return true
}
