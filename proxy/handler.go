package proxy

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/content"
	"github.com/granary-oci/granary/proxy/ref"
)

// Handler is the HTTP face of a [Registry]: the pull side of the distribution
// specification (main, "Pull" and "Registry Proxying").
type Handler struct {
	registry *Registry
	log      *slog.Logger
}

// NewHandler returns the HTTP face of r. It logs to log what a client cannot be
// told, and each request at debug level.
func NewHandler(r *Registry, log *slog.Logger) *Handler { return &Handler{r, log} }

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeAnswer(w, answer{http.StatusMethodNotAllowed, "UNSUPPORTED"}, "this registry is read-only")
		return
	}
	req, err := ref.ParsePath(r.URL.Path, r.URL.Query()["ns"], h.registry.cfg.DefaultHost)
	if err != nil {
		writeError(w, err, "NAME_UNKNOWN")
		return
	}
	if req.Namespace != "" {
		w.Header().Set("OCI-Namespace", req.Namespace)
	}
	h.log.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("method", r.Method),
		slog.String("path", r.URL.Path), slog.String("ns", req.Namespace), slog.String("range", r.Header.Get("Range")))
	switch req.Kind {
	case ref.Base:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	case ref.Manifest:
		sent, err := h.manifest(w, r, req)
		h.finish(w, r, sent, err, "MANIFEST_UNKNOWN")
	case ref.Blob:
		sent, err := h.blob(w, r, req)
		h.finish(w, r, sent, err, "BLOB_UNKNOWN")
	default:
		writeAnswer(w, answer{http.StatusNotFound, "UNSUPPORTED"}, "this registry serves manifests and blobs")
	}
}

// finish answers with err, or, when the answer was under way already, aborts the
// connection in a way that no client can take for the end of the content.
func (h *Handler) finish(w http.ResponseWriter, r *http.Request, sent bool, err error, unknown string) {
	switch {
	case err == nil:
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client has gone
	case !sent:
		h.log.Info("request failed", "path", r.URL.Path, "error", err)
		writeError(w, err, unknown)
	default:
		h.log.Error("response aborted", "path", r.URL.Path, "error", err)
		panic(http.ErrAbortHandler)
	}
}

// manifest answers a request for a manifest.
func (h *Handler) manifest(w http.ResponseWriter, r *http.Request, req ref.Request) (sent bool, err error) {
	res, err := h.registry.Resolve(r.Context(), req.Repository, req.Tag, req.Digest)
	if err != nil {
		return false, err
	}
	desc, body := res.Descriptor, []byte(nil)
	if r.Method == http.MethodGet || desc.MediaType == "" || desc.Size <= 0 {
		if desc, body, err = h.registry.Manifest(r.Context(), req.Repository, desc); err != nil {
			return false, err
		}
	}
	if !res.Stale.IsZero() {
		w.Header().Add("Warning", fmt.Sprintf(`299 - "stale: upstream %s is unreachable; %s was last resolved at %s"`,
			req.Repository.Host, req.Tag, res.Stale.UTC().Format(time.RFC3339)))
	}
	setDigest(w, desc.Digest, req.Digest != "")
	return content.Serve(w, r, content.Content{
		Type: desc.MediaType,
		ETag: etag(desc.Digest),
		Size: desc.Size,
		Open: func(p content.Part) (content.Body, error) {
			return bytesBody{bytes.NewReader(body[p.Offset : p.Offset+p.Length])}, nil
		},
	})
}

// blob answers a request for a blob.
func (h *Handler) blob(w http.ResponseWriter, r *http.Request, req ref.Request) (sent bool, err error) {
	b, release, err := h.registry.Blob(r.Context(), req.Repository, req.Digest)
	if err != nil {
		return false, err
	}
	defer release()
	setDigest(w, req.Digest, true)
	return content.Serve(w, r, content.Content{
		Type: "application/octet-stream",
		ETag: etag(req.Digest),
		Size: b.Size(),
		Open: func(p content.Part) (content.Body, error) {
			return h.open(r.Context(), http.NewResponseController(w), b, p)
		},
	})
}

func etag(d digest.Digest) string { return `"` + string(d) + `"` }

// setDigest sets the headers of content with a digest. What was asked for by
// digest never changes.
func setDigest(w http.ResponseWriter, d digest.Digest, immutable bool) {
	w.Header().Set("Docker-Content-Digest", string(d))
	if immutable {
		w.Header().Set("Cache-Control", "max-age=31536000, immutable")
	}
}
