// Package content serves the bytes of one immutable thing over HTTP as RFC 9110
// says: conditional requests, ranges, and several ranges in one answer. It knows
// nothing of registries.
//
// It differs from net/http's ServeContent where that departs from the RFC or
// hides what matters here: a suffix of no bytes is unsatisfiable, an unknown
// range unit is ignored, and so is Range in a HEAD request (section 14.2);
// ranges are never coalesced and never answered with the whole; and the writer
// of the bytes is told what they are for, so that it may hold back the end of
// what is complete and not run ahead of a client that may stop reading.
package content

import (
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// Content is one representation of something that never changes.
type Content struct {
	Type string // Content-Type
	ETag string // strong and quoted, as in "sha256:…"
	Size int64  // in bytes
	// Open prepares a part to be sent. It is called before the status is, so
	// that its error can still become an answer of the caller's. It is not
	// called for HEAD.
	Open func(Part) (Body, error)
}

// Part is a stretch of the content.
type Part struct {
	Offset, Length int64
	// OpenEnd says that the client asked for all that follows Offset. It may
	// stop reading early, so nothing is fetched that it has not come to.
	OpenEnd bool
	// Complete says that the client takes the end of what it gets for the end of
	// the whole, so that is not given out before the whole is known to be right.
	Complete bool
}

// Body is a part that is ready to be sent, once.
type Body interface {
	// WriteTo writes exactly the part, or fails.
	io.WriterTo
	// Close is called once, whether or not the part was written.
	io.Closer
}

// Serve answers r, a GET or HEAD request, with c. The caller has set all other
// headers.
//
// An error of Open that Serve returns with sent false has left the answer to the
// caller. With sent true the answer was under way, and the caller must abort the
// connection: a client must not take the end of the bytes for the end of the
// content.
func Serve(w http.ResponseWriter, r *http.Request, c Content) (sent bool, err error) {
	h := w.Header()
	h.Set("ETag", c.ETag)
	h.Set("Accept-Ranges", "bytes")
	if status := precondition(r, c.ETag); status != 0 {
		h.Del("Content-Type")
		w.WriteHeader(status)
		return true, nil
	}
	if r.Method == http.MethodHead {
		h.Set("Content-Type", c.Type)
		h.Set("Content-Length", strconv.FormatInt(c.Size, 10))
		w.WriteHeader(http.StatusOK)
		return true, nil
	}
	parts, ranged, err := c.parts(r)
	if err != nil {
		refuse(w, c.Size, err)
		return true, nil
	}
	if len(parts) > 1 {
		return c.sendSeveral(w, parts)
	}
	return c.sendOne(w, parts[0], ranged)
}

// precondition evaluates If-Match and If-None-Match (RFC 9110, section 13.2.2).
// It returns the status to answer with, or 0 to go on. Nothing here has a date,
// so the conditions on dates do not apply.
func precondition(r *http.Request, etag string) int {
	if v := r.Header.Values("If-Match"); len(v) > 0 && !matches(v, etag, false) {
		return http.StatusPreconditionFailed
	}
	if v := r.Header.Values("If-None-Match"); len(v) > 0 && matches(v, etag, true) {
		return http.StatusNotModified
	}
	return 0
}

// matches reports whether a list of entity tags has etag, which is strong. A
// weak tag matches only where weak comparison is allowed (section 8.8.3.2).
func matches(lists []string, etag string, weak bool) bool {
	for _, list := range lists {
		for list = strings.TrimLeft(list, " \t,"); list != ""; list = strings.TrimLeft(list, " \t,") {
			if list[0] == '*' {
				return true
			}
			tag, isWeak := strings.CutPrefix(list, "W/")
			end := strings.IndexByte(strings.TrimPrefix(tag, `"`), '"')
			if !strings.HasPrefix(tag, `"`) || end < 0 {
				break // not a list of entity tags; what follows cannot be read
			}
			if tag[:end+2] == etag && (weak || !isWeak) {
				return true
			}
			list = tag[end+2:]
		}
	}
	return false
}

// parts returns what the request asks for, and whether by Range.
func (c Content) parts(r *http.Request) (parts []Part, ranged bool, err error) {
	whole := []Part{{Length: c.Size, Complete: true}}
	header := r.Header.Get("Range")
	if header == "" {
		return whole, false, nil
	}
	if v := r.Header.Get("If-Range"); v != "" && v != c.ETag {
		return whole, false, nil // changed since, or a date, which nothing here has
	}
	parts, ignore, err := parseRange(header, c.Size)
	if ignore {
		return whole, false, nil
	}
	return parts, true, err
}

// refuse answers 416 (section 15.5.17).
func refuse(w http.ResponseWriter, size int64, reason error) {
	h := w.Header()
	for _, name := range []string{"ETag", "Cache-Control", "Docker-Content-Digest"} {
		h.Del(name) // they are the content's, which this is not
	}
	h.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
	h.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
	fmt.Fprintln(w, reason)
}

func (c Content) sendOne(w http.ResponseWriter, p Part, ranged bool) (sent bool, err error) {
	body, err := c.Open(p)
	if err != nil {
		return false, err
	}
	defer body.Close()
	h := w.Header()
	h.Set("Content-Type", c.Type)
	h.Set("Content-Length", strconv.FormatInt(p.Length, 10))
	status := http.StatusOK
	if ranged {
		h.Set("Content-Range", contentRange(p, c.Size))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	return true, write(w, body, p)
}

// sendSeveral answers with multipart/byteranges (section 14.6): a part for each
// range, in the order of the request.
func (c Content) sendSeveral(w http.ResponseWriter, parts []Part) (sent bool, err error) {
	first, err := c.Open(parts[0])
	if err != nil {
		return false, err
	}
	defer first.Close()
	mw := multipart.NewWriter(w)
	h := w.Header()
	h.Set("Content-Type", "multipart/byteranges; boundary="+mw.Boundary())
	h.Set("Content-Length", strconv.FormatInt(c.severalSize(parts, mw.Boundary()), 10))
	w.WriteHeader(http.StatusPartialContent)
	for i, p := range parts {
		pw, err := mw.CreatePart(c.partHeader(p))
		if err != nil {
			return true, err
		}
		_ = pw // its bytes go to w itself, which may have a fast path for files
		body := first
		if i > 0 {
			if body, err = c.Open(p); err != nil {
				return true, err
			}
		}
		err = write(w, body, p)
		if i > 0 {
			_ = body.Close()
		}
		if err != nil {
			return true, err
		}
	}
	return true, mw.Close()
}

// write sends a body, which must be exactly the part.
func write(w io.Writer, body Body, p Part) error {
	n, err := body.WriteTo(w)
	if err == nil && n != p.Length {
		err = fmt.Errorf("content: %d bytes were written of %d", n, p.Length)
	}
	return err
}

// severalSize returns the length of a multipart answer.
func (c Content) severalSize(parts []Part, boundary string) int64 {
	var n counter
	mw := multipart.NewWriter(&n)
	_ = mw.SetBoundary(boundary)
	for _, p := range parts {
		_, _ = mw.CreatePart(c.partHeader(p))
		n += counter(p.Length)
	}
	_ = mw.Close()
	return int64(n)
}

func (c Content) partHeader(p Part) textproto.MIMEHeader {
	return textproto.MIMEHeader{"Content-Type": {c.Type}, "Content-Range": {contentRange(p, c.Size)}}
}

func contentRange(p Part, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", p.Offset, p.Offset+p.Length-1, size)
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
