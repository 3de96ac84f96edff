// Package tarhead reads the parts that a tar's headers are made of: the checksum, numbers,
// texts and PAX records (POSIX.1-2024, pax, "ustar Interchange Format" and "pax Extended
// Header"). What they mean together it leaves to others.
package tarhead

import (
	"bytes"
	"math"
	"strconv"
	"strings"
)

// BlockSize is the size, in bytes, of a header, and what contents are filled up to a
// multiple of.
const BlockSize = 512

// Valid reports whether a header's checksum is right: the sum of its bytes, with
// the checksum itself as blanks. Some old programs took the bytes for signed.
func Valid(b *[BlockSize]byte) bool {
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

// Number reads a field with a number: octal digits, or, as GNU and STAR write those that do
// not fit, big-endian in two's complement behind a set bit.
func Number(field []byte) (int64, bool) {
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
	s := Text(bytes.Trim(field, " \x00"))
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 8, 63)
	return int64(n), err == nil
}

// Text returns a field up to its first zero byte.
func Text(field []byte) string {
	s, _, _ := bytes.Cut(field, []byte{0})
	return string(s)
}

// CutRecord cuts the first of a sequence of records "LENGTH KEY=VALUE\n", in which the
// length counts all of that. It is not ok if s does not begin with one.
func CutRecord(s string) (key, value, rest string, ok bool) {
	digits, _, ok := strings.Cut(s, " ")
	n, err := strconv.ParseUint(digits, 10, 31)
	if !ok || err != nil || int(n) > len(s) || int(n) <= len(digits)+1 || s[n-1] != '\n' {
		return "", "", "", false
	}
	key, value, ok = strings.Cut(s[len(digits)+1:n-1], "=")
	if !ok || key == "" {
		return "", "", "", false
	}
	if key == "path" || key == "linkpath" || key == "uname" || key == "gname" {
		ok = strings.IndexByte(value, 0) < 0
	} else {
		ok = strings.IndexByte(key, 0) < 0
	}
	return key, value, s[n:], ok
}
