package toc

import (
	"encoding/base64"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits of what is read of a table as JSON, beside those of what it says.
const (
	maxJSONDepth  = 32        // objects and arrays within each other
	maxJSONString = 128 << 10 // bytes of one string: the largest attribute, in base64
	maxJSONNumber = 64        // digits
)

// errEnded says that the bytes end inside a value.
var errEnded = fmt.Errorf("%w: it ends too early", ErrMalformed)

// jsonReader reads JSON (RFC 8259) as it streams by, and keeps no more of it than one
// string: a table may be larger than what it is worth in memory.
//
// After an error, which is in err, its methods do nothing.
type jsonReader struct {
	r    io.Reader
	buf  []byte // of which what is ahead is buf[pos:end]
	pos  int
	end  int
	left int64 // bytes that may still be read
	deep int
	str  []byte // the last string
	err  error
}

func newJSONReader(r io.Reader) *jsonReader {
	return &jsonReader{r: r, buf: make([]byte, 64<<10), left: MaxTOCSize}
}

func (j *jsonReader) fail(err error) {
	if j.err == nil {
		j.err = err
	}
}

func (j *jsonReader) malformed(format string, args ...any) {
	j.fail(fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...))
}

// more reports whether a byte is ahead, and reads on if that takes it.
func (j *jsonReader) more() bool {
	for tries := 0; j.err == nil && j.pos == j.end; tries++ {
		n, err := j.r.Read(j.buf)
		j.pos, j.end = 0, n
		j.left -= int64(n)
		switch {
		case j.left < 0:
			j.fail(fmt.Errorf("%w: more than %d bytes", ErrLimit, MaxTOCSize))
		case n > 0: // an error comes again
		case err == io.EOF:
			j.fail(errEnded)
		case err != nil:
			j.fail(err)
		case tries > 100:
			j.fail(io.ErrNoProgress)
		}
	}
	return j.err == nil
}

// peek returns the next byte that is not a space; 0 after an error.
func (j *jsonReader) peek() byte {
	for j.more() {
		for ; j.pos < j.end; j.pos++ {
			if c := j.buf[j.pos]; c > ' ' || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
				return c
			}
		}
	}
	return 0
}

// accept skips c if it is next.
func (j *jsonReader) accept(c byte) bool {
	if j.peek() != c || j.err != nil {
		return false
	}
	j.pos++
	return true
}

// expect skips c, which is next, or fails.
func (j *jsonReader) expect(c byte) bool {
	if j.accept(c) {
		return true
	}
	if j.err == nil {
		j.malformed("%q where %q belongs", j.buf[j.pos], c)
	}
	return false
}

// finish fails unless nothing but spaces is ahead.
func (j *jsonReader) finish() {
	if j.err != nil {
		return
	}
	c := j.peek()
	switch j.err {
	case nil:
		j.malformed("%q after its end", c)
	case errEnded:
		j.err = nil
	}
}

// object reads an object: member is called for each, and reads its value. The key is
// valid until then. Null is an object without members.
func (j *jsonReader) object(member func(key []byte)) {
	j.list('{', '}', func() {
		key := j.text()
		if j.err == nil && j.expect(':') {
			member(key)
		}
	})
}

// array reads an array: element is called to read each. Null is an empty one.
func (j *jsonReader) array(element func()) { j.list('[', ']', element) }

func (j *jsonReader) list(open, end byte, element func()) {
	if j.null() || !j.expect(open) {
		return
	}
	if j.deep++; j.deep > maxJSONDepth {
		j.fail(fmt.Errorf("%w: more than %d levels", ErrLimit, maxJSONDepth))
	}
	defer func() { j.deep-- }()
	if j.accept(end) {
		return
	}
	for j.err == nil {
		element()
		if j.err != nil || j.accept(end) {
			return
		}
		j.expect(',')
	}
}

func (j *jsonReader) null() bool {
	if j.peek() != 'n' {
		return false
	}
	j.word("null")
	return true
}

func (j *jsonReader) word(w string) {
	for i := 0; i < len(w) && j.more(); i++ {
		if j.buf[j.pos] != w[i] {
			j.malformed("%q in %s", j.buf[j.pos], w)
			return
		}
		j.pos++
	}
}

// text reads a string, which is valid until the next one is read. Null is an empty one.
//
// Bytes that are not UTF-8 are given as they are; see [appendJSONString].
func (j *jsonReader) text() []byte {
	j.str = j.str[:0]
	if j.null() || !j.expect('"') {
		return nil
	}
	for j.more() {
		ahead := j.buf[j.pos:j.end]
		n := plain(ahead)
		j.str = append(j.str, ahead[:n]...)
		j.pos += n
		if len(j.str) > maxJSONString {
			j.fail(fmt.Errorf("%w: a string of more than %d bytes", ErrLimit, maxJSONString))
		}
		if n == len(ahead) {
			continue
		}
		j.pos++
		switch ahead[n] {
		case '"':
			return j.str
		case '\\':
			j.escape()
		default:
			j.malformed("%q in a string", ahead[n])
		}
	}
	return nil
}

// plain returns how many bytes from the beginning stand for themselves in a string.
func plain(p []byte) int {
	for i, c := range p {
		if c < ' ' || c == '"' || c == '\\' {
			return i
		}
	}
	return len(p)
}

// next returns the next byte, even if it is a space.
func (j *jsonReader) next() byte {
	if !j.more() {
		return 0
	}
	j.pos++
	return j.buf[j.pos-1]
}

// escape reads what follows a backslash.
func (j *jsonReader) escape() {
	switch c := j.next(); c {
	case '"', '\\', '/':
		j.str = append(j.str, c)
	case 'b':
		j.str = append(j.str, '\b')
	case 'f':
		j.str = append(j.str, '\f')
	case 'n':
		j.str = append(j.str, '\n')
	case 'r':
		j.str = append(j.str, '\r')
	case 't':
		j.str = append(j.str, '\t')
	case 'u':
		j.unicode()
	default:
		j.malformed("an escape %q", c)
	}
}

// unicode reads the digits of one character, or of the two halves of one. A second
// half alone, from U+DC80 to U+DCFF, is a byte that is not UTF-8.
func (j *jsonReader) unicode() {
	u := j.unit()
	switch {
	case !utf16.IsSurrogate(u):
		j.str = utf8.AppendRune(j.str, u)
	case u >= 0xdc80 && u <= 0xdcff:
		j.str = append(j.str, byte(u))
	case u >= 0xdc00 || j.next() != '\\' || j.next() != 'u':
		j.malformed("half of a character")
	default:
		r := utf16.DecodeRune(u, j.unit())
		if r == utf8.RuneError {
			j.malformed("half of a character")
		}
		j.str = utf8.AppendRune(j.str, r)
	}
}

func (j *jsonReader) unit() (u rune) {
	for range 4 {
		c := j.next()
		switch {
		case '0' <= c && c <= '9':
			u = u<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			u = u<<4 | rune(c|0x20-'a'+10)
		default:
			j.malformed("a digit %q", c)
			return 0
		}
	}
	return u
}

// number returns the characters of a number, which are valid until the next string or
// number is read.
func (j *jsonReader) number() []byte {
	j.str = j.str[:0]
	j.peek()
	for j.more() {
		switch c := j.buf[j.pos]; c {
		case '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '-', '+', '.', 'e', 'E':
			j.str = append(j.str, c)
			j.pos++
		default:
			if len(j.str) == 0 {
				j.malformed("%q where a value belongs", c)
			}
			return j.str
		}
		if len(j.str) > maxJSONNumber {
			j.fail(fmt.Errorf("%w: a number of more than %d digits", ErrLimit, maxJSONNumber))
		}
	}
	return nil
}

// integer reads an integer of 64 bits. Null is 0.
func (j *jsonReader) integer() int64 {
	if j.null() {
		return 0
	}
	digits := j.number()
	if j.err != nil {
		return 0
	}
	n, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil {
		j.malformed("%q is no integer of 64 bits", digits)
	}
	return n
}

// base64 reads a string of base64 (RFC 4648 section 4).
func (j *jsonReader) base64() string {
	p, err := base64.StdEncoding.AppendDecode(nil, j.text())
	if err != nil {
		j.malformed("base64: %v", err)
	}
	return string(p)
}

// skip reads a value, whatever it is.
func (j *jsonReader) skip() {
	switch j.peek() {
	case '{':
		j.object(func([]byte) { j.skip() })
	case '[':
		j.array(j.skip)
	case '"':
		j.text()
	case 'n':
		j.word("null")
	case 't':
		j.word("true")
	case 'f':
		j.word("false")
	default:
		j.number()
	}
}
