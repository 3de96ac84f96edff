package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Web is a layout on a web server that knows nothing of registries: files by GET, blobs
// by ranges where the server knows these.
type Web struct {
	server *upstream.Repository
	url    string
}

var _ Files = (*Web)(nil)

// NewWeb returns the layout below the URL of a server, which is that of [upstream.Config].
func NewWeb(server *upstream.Registry, url string) *Web {
	return &Web{server.Static(), strings.TrimRight(url, "/")}
}

// Path implements [Files].
func (w *Web) Path(name string) string { return strings.TrimSuffix(w.url+"/"+name, "/") }

// File implements [Files]. The version is the server's validator.
func (w *Web) File(ctx context.Context, name string, limit int64, known string) ([]byte, string, error) {
	h := http.Header{}
	switch field, v, _ := strings.Cut(known, " "); field {
	case "etag":
		h.Set("If-None-Match", v)
	case "modified":
		h.Set("If-Modified-Since", v)
	}
	resp, err := w.server.Get(ctx, name, nil, h)
	var said *upstream.StatusError
	if errors.As(err, &said) && said.Code == http.StatusNotModified && known != "" {
		return nil, known, nil
	}
	if err != nil {
		return nil, "", w.explain(name, err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, "", w.explain(name, err)
	}
	if int64(len(p)) > limit {
		return nil, "", tooLarge(w.Path(name), limit)
	}
	return p, validator(resp.Header), nil
}

// validator returns what an answer can be asked for again with (RFC 9110, section 8.8),
// or "". Many servers make it of a time in seconds: of a file that has changed just
// before, it is none.
func validator(h http.Header) string {
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	if err == nil {
		now, err := http.ParseTime(h.Get("Date"))
		if err != nil {
			now = time.Now()
		}
		if now.Sub(modified) < settled {
			return ""
		}
	}
	switch etag := h.Get("ETag"); {
	case etag != "":
		return "etag " + etag
	case err == nil:
		return "modified " + h.Get("Last-Modified")
	}
	return ""
}

// Stat implements [Files].
func (w *Web) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	size, err := w.server.Stat(ctx, d)
	return size, w.explain(blobPath(d), err)
}

// Range implements [Files].
func (w *Web) Range(ctx context.Context, d digest.Digest, asked string) (*http.Response, error) {
	resp, err := w.server.Get(ctx, blobPath(d), nil, http.Header{"Range": {asked}})
	return resp, w.explain(blobPath(d), err)
}

// Blob implements [Files].
func (w *Web) Blob() chunk.Source { return webSource{w} }

type webSource struct{ web *Web }

// Get implements [chunk.Source].
func (s webSource) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := s.web.server.Blob().Get(ctx, ref)
	return p, s.web.explainBlob(ref.Blob, err)
}

// GetRun implements [chunk.Runner].
func (s webSource) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	var stop error // what yield returned is not the server's
	err := chunk.GetRun(ctx, s.web.server.Blob(), refs, func(ref chunk.Ref, p []byte) error {
		stop = yield(ref, p)
		return stop
	})
	if err == nil || stop != nil {
		return err
	}
	return s.web.explainBlob(refs[0].Blob, err)
}

func (w *Web) explainBlob(d digest.Digest, err error) error {
	if err == nil {
		return nil
	}
	return w.explain(blobPath(d), err)
}

// explain makes an error of a server that knows nothing of registries: it has no word on
// who may read what, and what it lacks is only what the layout lacks.
func (w *Web) explain(name string, err error) error {
	var corrupt *chunk.CorruptError
	var said *upstream.StatusError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &corrupt):
		return &chunk.CorruptError{Source: Origin + " " + w.Path(name), Ref: corrupt.Ref, Reason: corrupt.Reason}
	case missing(err):
		return fmt.Errorf("layout: %s: %w", w.Path(name), chunk.ErrNotFound)
	case errors.As(err, &said) && errors.Is(err, chunk.ErrDenied):
		return fmt.Errorf("layout: %s: the server answers %d", w.Path(name), said.Code)
	}
	return fmt.Errorf("layout: %w", err)
}
