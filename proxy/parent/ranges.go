package parent

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// byteRange is a closed range that is asked for (RFC 9110, section 14.1.2), from one byte to another, which
// is not in it. The zero value is none.
type byteRange struct{ off, end int64 }

func parseRange(header string) (r byteRange) {
	bounds, _ := strings.CutPrefix(header, "bytes=")
	first, last, _ := strings.Cut(bounds, "-")
	off, err1 := strconv.ParseUint(first, 10, 62)
	end, err2 := strconv.ParseUint(last, 10, 62)
	if err1 != nil || err2 != nil || end < off {
		return r
	}
	return byteRange{int64(off), int64(end) + 1}
}

// answeredBy reports whether an answer has the range, if it is one (RFC 9110, section 15.3.7). The registry
// might have it where a parent has not.
func (r byteRange) answeredBy(resp *http.Response) bool {
	if r == (byteRange{}) {
		return true
	}
	return resp.StatusCode == http.StatusPartialContent &&
		strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/", r.off, r.end-1)) &&
		(resp.ContentLength < 0 || resp.ContentLength == r.end-r.off)
}

// rangeBody is what a parent gives of a blob from one byte to another. The parent is held to it.
type rangeBody struct {
	io.ReadCloser
	by    *Repository
	blob  digest.Digest
	left  byteRange
	begin int64 // of the part of a chunk that sum is of
	sum   hash.Hash
}

func (r *Repository) held(body io.ReadCloser, d digest.Digest, of byteRange) *rangeBody {
	return &rangeBody{body, r, d, of, of.off, sha256.New()}
}

// Read implements [io.Reader].
func (b *rangeBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left.end-b.left.off)])
	b.keep(p[:n])
	if b.by.parents.given.doubted(blob{b.by.name.Host, b.blob}) { // by now: it may be of the same lie
		return 0, b.by.doubted(b.blob)
	}
	switch {
	case b.left.off == b.left.end && b.goesOn():
		return 0, b.by.heed(&chunk.CorruptError{Ref: chunk.Ref{Blob: b.blob, Offset: b.begin, Size: b.left.end - b.begin}, Reason: "more bytes arrive than were asked for"})
	case b.left.off == b.left.end:
		b.give()
		return n, io.EOF
	case err == io.EOF:
		err = &upstream.NoAnswerError{Subject: b.by.parent.origin, Err: fmt.Errorf("the body ends early: %w", io.ErrUnexpectedEOF)}
	}
	if err != nil {
		err = b.by.heed(err)
	}
	return n, err
}

// goesOn reports whether there is more than was asked for. How a body ends does not matter.
func (b *rangeBody) goesOn() bool {
	n, _ := io.ReadFull(b.ReadCloser, make([]byte, 1))
	return n > 0
}

// keep takes note of what has arrived: chunk by chunk, for it is chunks that are compared.
func (b *rangeBody) keep(p []byte) {
	for len(p) > 0 {
		n := min(int64(len(p)), chunk.Size-b.left.off%chunk.Size)
		_, _ = b.sum.Write(p[:n])
		b.left.off += n
		p = p[n:]
		if b.left.off%chunk.Size == 0 {
			b.give()
		}
	}
}

// give remembers the part of a chunk that has arrived.
func (b *rangeBody) give() {
	if b.begin == b.left.off {
		return
	}
	part := givenPart{parent: b.by.parent, from: b.begin, to: b.left.off}
	b.sum.Sum(part.sum[:0])
	b.by.parents.given.add(blob{b.by.name.Host, b.blob}, part)
	b.begin = b.left.off
	b.sum.Reset()
}

// Close ends the request, before its end if that is not wanted any more.
func (b *rangeBody) Close() error {
	b.give()
	return b.ReadCloser.Close()
}
