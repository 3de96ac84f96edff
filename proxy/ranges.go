package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// maxBreaks bounds the requests for what is missing of a range whose answers break off.
const maxBreaks = 4

// blobRange reads part of a blob from an upstream. Where an answer breaks off, the rest is asked of
// the places behind the one that gave it, and then of all: a line may be back.
type blobRange struct {
	ctx      context.Context
	all      Mirrors
	behind   Mirrors // the one that answers
	digest   digest.Digest
	off, end int64 // what has not been read yet
	body     io.ReadCloser
	source   string // of the body
	breaks   int
}

// openRange asks for the bytes of a blob from off to end, which are more than none. The error is
// [upstream.ErrNoRanges] where only whole blobs are to be had. The caller closes what it returns.
func openRange(ctx context.Context, up Upstream, d digest.Digest, off, end int64) (*blobRange, error) {
	all, several := up.(Mirrors)
	if !several {
		all = Mirrors{up}
	}
	r := &blobRange{ctx: ctx, all: all, digest: d, off: off, end: end}
	if err := r.ask(all); err != nil {
		return nil, err
	}
	return r, nil
}

// ask has the first of some places that does so send what is missing.
func (r *blobRange) ask(places Mirrors) error {
	ctx, from := chunk.WithOrigin(r.ctx)
	asked := 0
	resp, err := anyOf(ctx, places, func(_ context.Context, up Upstream) (*http.Response, error) {
		asked++
		return getRange(ctx, up, r.digest, r.off, r.end) // whose body is read later
	})
	if err != nil {
		return err
	}
	r.body, r.source, r.behind = resp.Body, from(), places[asked:]
	return nil
}

func getRange(ctx context.Context, up Upstream, d digest.Digest, off, end int64) (*http.Response, error) {
	asked := fmt.Sprintf("bytes=%d-%d", off, end-1)
	resp, err := up.Get(ctx, "blobs/"+string(d), nil, http.Header{"Range": {asked}})
	if err != nil {
		return nil, err
	}
	var first, last int64
	_, bad := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &first, &last)
	switch {
	case resp.StatusCode != http.StatusPartialContent:
		err = upstream.ErrNoRanges
	case bad != nil || first != off || last != end-1:
		err = fmt.Errorf("%s was asked for, %q is the answer", asked, resp.Header.Get("Content-Range"))
	default:
		return resp, nil
	}
	resp.Body.Close()
	return nil, err
}

// Read implements [io.Reader].
func (r *blobRange) Read(p []byte) (int, error) {
	n, err := r.body.Read(p[:min(int64(len(p)), r.end-r.off)])
	if r.off += int64(n); err == nil || r.off == r.end {
		return n, err
	}
	return n, r.goOn(err)
}

// goOn has the rest sent by another place, after an answer has broken off with an error. What that one
// says instead is only told: it was somebody else who was asked.
func (r *blobRange) goOn(broken error) error {
	r.body.Close()
	if broken == io.EOF {
		broken = io.ErrUnexpectedEOF
	}
	for _, places := range []Mirrors{r.behind, r.all} {
		if len(places) == 0 || r.breaks >= maxBreaks || r.ctx.Err() != nil {
			continue
		}
		r.breaks++
		err := r.ask(places)
		if err == nil {
			return nil
		}
		broken = fmt.Errorf("%w (then: %v)", broken, err)
	}
	return fmt.Errorf("bytes %d-%d: %w", r.off, r.end-1, broken)
}

// Close ends the request.
func (r *blobRange) Close() error { return r.body.Close() }
