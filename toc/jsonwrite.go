package toc

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// EncodeJSON writes a table as JSON, with the members that eStargz and zstd:chunked
// have, and "modtimeSeconds" for times of other years than 0 to 9999: from them
// [DecodeJSON] makes an equal one. The same table gives the same bytes. Errors are
// those of w.
//
// A byte of a name that is not UTF-8 is written as "\udc80" to "\udcff", which other
// readers take for the replacement character.
func EncodeJSON(w io.Writer, t *TOC) error {
	e := jsonEncoder{w: w, p: []byte(`{"version":1,"entries":[`)}
	for entry := range t.All() {
		e.entry(&entry)
	}
	e.p = append(e.p, "\n]}\n"...)
	if e.write(); e.err != nil {
		return fmt.Errorf("table: %w", e.err)
	}
	return nil
}

// jsonEncoder gathers objects, each in a line, and writes them when they are some. After
// an error, which is in err, it writes nothing.
type jsonEncoder struct {
	w    io.Writer
	p    []byte
	some bool // objects were begun
	open bool // one is
	err  error
}

func (e *jsonEncoder) write() {
	if e.err == nil {
		_, e.err = e.w.Write(e.p)
	}
	e.p = e.p[:0]
}

// entry writes an entry, and a chunk for each extent and hole behind the first one.
func (e *jsonEncoder) entry(x *Entry) {
	e.text("name", x.Name)
	e.text("type", x.Type.String())
	e.number("size", x.Size)
	e.time(x.ModTime)
	e.text("linkName", x.Link)
	e.number("mode", int64(x.Mode))
	e.number("uid", int64(x.UID))
	e.number("gid", int64(x.GID))
	e.number("devMajor", int64(x.Major))
	e.number("devMinor", int64(x.Minor))
	e.xattrs(x.Xattrs)
	e.text("digest", x.Digest.String())
	e.content(x)
	e.end()
}

// content writes where a file's content is: extents, and holes before and behind them.
func (e *jsonEncoder) content(f *Entry) {
	covered := int64(0)
	begin := func() {
		if covered > 0 { // the first chunk is that of the file's own entry
			e.end()
			e.text("name", f.Name)
			e.text("type", "chunk")
		}
	}
	hole := func(end int64) {
		if end == covered {
			return
		}
		begin()
		e.chunk(covered, end-covered)
		e.text("chunkType", "zeros")
		covered = end
	}
	for _, x := range f.Extents {
		hole(x.Offset)
		begin()
		if x.Size < f.Size {
			e.chunk(x.Offset, x.Size)
		}
		e.number("offset", x.Start)
		e.member("endOffset") // 0 as well: what is left out is not 0
		e.p = strconv.AppendInt(e.p, x.End, 10)
		e.number("innerOffset", x.Inner)
		e.text("chunkDigest", x.Digest.String())
		covered = x.Offset + x.Size
	}
	hole(f.Size)
}

func (e *jsonEncoder) chunk(off, size int64) {
	e.number("chunkOffset", off)
	e.number("chunkSize", size)
}

// member begins a member, and the object if it is the first.
func (e *jsonEncoder) member(key string) {
	switch {
	case e.open:
		e.p = append(e.p, ',')
	case e.some:
		e.p = append(e.p, ",\n{"...)
	default:
		e.p = append(e.p, "\n{"...)
	}
	e.some, e.open = true, true
	e.p = append(appendJSONString(e.p, key), ':')
}

// end ends the object.
func (e *jsonEncoder) end() {
	e.p, e.open = append(e.p, '}'), false
	if len(e.p) >= 64<<10 {
		e.write()
	}
}

// text adds a member, unless it is empty and not the name.
func (e *jsonEncoder) text(key, s string) {
	if s != "" || key == "name" {
		e.member(key)
		e.p = appendJSONString(e.p, s)
	}
}

// number adds a member, unless it is 0.
func (e *jsonEncoder) number(key string, n int64) {
	if n != 0 {
		e.member(key)
		e.p = strconv.AppendInt(e.p, n, 10)
	}
}

// The times that RFC 3339 has: years 0 to 9999.
var (
	firstSecond = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	lastSecond  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix()
)

func (e *jsonEncoder) time(t time.Time) {
	seconds := t.Unix()
	in := min(max(seconds, firstSecond), lastSecond)
	e.member("modtime")
	e.p = append(e.p, '"')
	e.p = time.Unix(in, int64(t.Nanosecond())).UTC().AppendFormat(e.p, time.RFC3339Nano)
	e.p = append(e.p, '"')
	if in != seconds {
		e.number("modtimeSeconds", seconds)
	}
}

func (e *jsonEncoder) xattrs(attrs map[string]string) {
	if len(attrs) == 0 {
		return
	}
	e.member("xattrs")
	c := byte('{')
	for _, key := range slices.Sorted(maps.Keys(attrs)) {
		e.p = appendJSONString(append(e.p, c), key)
		e.p = append(e.p, `:"`...)
		e.p = base64.StdEncoding.AppendEncode(e.p, []byte(attrs[key]))
		e.p = append(e.p, '"')
		c = ','
	}
	e.p = append(e.p, '}')
}

// appendJSONString adds s as JSON. Bytes that are not UTF-8 become the halves of
// characters that Python's surrogateescape (PEP 383) makes of them.
func appendJSONString(p []byte, s string) []byte {
	const digits = "0123456789abcdef"
	p = append(p, '"')
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		c := s[0]
		switch {
		case r == utf8.RuneError && n == 1:
			p = append(p, `\udc`...)
			p = append(p, digits[c>>4], digits[c&15])
		case c == '"' || c == '\\':
			p = append(p, '\\', c)
		case c < ' ':
			p = append(p, `\u00`...)
			p = append(p, digits[c>>4], digits[c&15])
		default:
			p = append(p, s[:n]...)
		}
		s = s[n:]
	}
	return append(p, '"')
}
