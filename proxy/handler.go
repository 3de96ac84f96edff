package proxy

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/content"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/trace"
)

// Limits of a request.
const (
	maxURI       = 8 << 10 // bytes of the path and query
	maxVia       = 1 << 10
	bodyWithin   = 5 * time.Second
	answerWithin = 2 * time.Minute // for the client to take what is no blob
)

// Handler is the HTTP face of a [Registry]: the pull and discovery side of the
// distribution specification (main, "Pull", "Content Discovery" and "Registry
// Proxying").
type Handler struct {
	registry  *Registry
	pseudonym string
	log       *slog.Logger
	tracer    otel.Tracer // nil for none
}

// NewHandler returns the HTTP face of r. It logs to log what a client cannot be
// told, and each request at debug level. A request that has come through
// pseudonym, as its Via field tells, has come in a circle and is refused. tracer makes spans of
// what is done for requests; nil makes none.
func NewHandler(r *Registry, pseudonym string, log *slog.Logger, tracer otel.Tracer) *Handler {
	return &Handler{r, pseudonym, log, tracer}
}

// requestID is the field that names a request, in what is asked and what is answered.
const requestID = "X-Request-Id"

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from := trace.Parent{ID: r.Header.Get(requestID), Trace: r.Header.Get("Traceparent")}
	ctx, span := trace.Begin(r.Context(), h.tracer, from, r.Method, otel.SpanKindServer)
	defer span.End(nil)
	w.Header().Set(requestID, trace.ID(ctx))
	h.serve(w, r.WithContext(ctx), span)
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, span *trace.Span) {
	client := http.NewResponseController(w)
	_ = client.SetWriteDeadline(time.Now().Add(answerWithin)) // blobs set their own, as they go
	if r.ContentLength != 0 {
		// Nothing here has a body. One that is announced and does not come must
		// not hold the connection.
		w.Header().Set("Connection", "close")
		_ = client.SetReadDeadline(time.Now().Add(bodyWithin))
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	via := strings.Join(r.Header.Values("Via"), ", ")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		w.Header().Set("Connection", "close") // and leave what the client wants to write unread
		writeAnswer(w, answer{http.StatusMethodNotAllowed, "UNSUPPORTED"}, "this registry is read-only")
		return
	case len(r.RequestURI) > maxURI:
		writeAnswer(w, answer{http.StatusRequestURITooLong, "NAME_INVALID"}, "the URI is too long")
		return
	case h.pseudonym != "" && strings.Contains(via, h.pseudonym):
		writeAnswer(w, answer{http.StatusLoopDetected, "UNAVAILABLE"}, "the request has come in a circle: an upstream of this node leads back to it")
		return
	case len(via) > maxVia:
		writeAnswer(w, answer{http.StatusBadRequest, "UNSUPPORTED"}, "the Via field is too long")
		return
	}
	req, err := ref.ParsePath(r.URL.Path, r.URL.Query()["ns"], h.registry.cfg.DefaultHost)
	if err != nil {
		writeError(w, err, "NAME_UNKNOWN")
		return
	}
	caller, err := access.FromHeader(r.Header)
	if err != nil {
		writeAnswer(w, answer{http.StatusBadRequest, "UNAUTHORIZED"}, err.Error())
		return
	}
	if req.Namespace != "" {
		w.Header().Set("OCI-Namespace", req.Namespace)
	}
	h.log.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.String("ns", req.Namespace), slog.String("range", r.Header.Get("Range")), slog.String("caller", caller.String()))
	span.Describe(r.Method+" "+req.Kind.String(), attribute.String("oci.repository", req.Repository.String()),
		attribute.String("oci.reference", cmp.Or(string(req.Digest), req.Tag)), attribute.String("http.request.header.range", r.Header.Get("Range")))
	h.answer(w, r.WithContext(trace.WithVia(r.Context(), via)), h.registry.Open(req.Repository, caller), req, span)
}

// answer answers a request that is well-formed.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request, span *trace.Span) {
	switch req.Kind {
	case ref.Base:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	case ref.Manifest:
		h.registry.cfg.Asked(p.Host, r.Method, req.Kind)
		sent, err := h.manifest(w, r, p, req)
		h.finish(w, r, span, sent, err, "MANIFEST_UNKNOWN")
	case ref.Blob:
		h.registry.cfg.Asked(p.Host, r.Method, req.Kind)
		sent, err := h.blob(w, r, p, req)
		h.finish(w, r, span, sent, err, "BLOB_UNKNOWN")
	case ref.Tags:
		h.finish(w, r, span, false, h.tags(w, r, p, req), "NAME_UNKNOWN")
	case ref.Referrers:
		h.finish(w, r, span, false, h.referrers(w, r, p, req), "NAME_UNKNOWN")
	case ref.TOC:
		sent, err := h.toc(w, r, p, req)
		h.finish(w, r, span, sent, err, "BLOB_UNKNOWN")
	case ref.File:
		sent, err := h.file(w, r, p, req)
		h.finish(w, r, span, sent, err, "BLOB_UNKNOWN")
	case ref.Mount:
		sent, err := h.mount(w, r, p, req)
		h.finish(w, r, span, sent, err, "MANIFEST_UNKNOWN")
	case ref.Map:
		h.finish(w, r, span, false, h.blobMap(w, r, p, req), "BLOB_UNKNOWN")
	case ref.Recipe, ref.Contents:
		sent, err := h.change(w, r, p, req)
		h.finish(w, r, span, sent, err, "BLOB_UNKNOWN")
	default:
		writeAnswer(w, answer{http.StatusNotFound, "UNSUPPORTED"}, "this registry takes no uploads")
	}
}

// finish answers with err, or, when the answer was under way already, aborts the
// connection in a way that no client can take for the end of the content.
func (h *Handler) finish(w http.ResponseWriter, r *http.Request, span *trace.Span, sent bool, err error, unknown string) {
	span.Fail(err)
	switch {
	case err == nil:
		return
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client has gone
	case chunk.IsCorrupt(err):
		h.registry.report(err) // which counts it, and logs it with the digest
	case sent:
		h.log.ErrorContext(r.Context(), "response aborted", "path", r.URL.Path, "error", err)
	default:
		h.log.InfoContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
	}
	if sent {
		panic(http.ErrAbortHandler)
	}
	writeError(w, err, unknown)
}

// manifest answers a request for a manifest.
func (h *Handler) manifest(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) (sent bool, err error) {
	res, err := p.Resolve(r.Context(), req.Tag, req.Digest)
	if err != nil {
		return false, err
	}
	desc, body := res.Descriptor, []byte(nil)
	if r.Method == http.MethodGet || desc.MediaType == "" || desc.Size <= 0 {
		m, err := p.Manifest(r.Context(), desc.Digest)
		if err != nil {
			return false, err
		}
		desc, body = m.Descriptor, m.Bytes
	}
	h.registry.wasTold(p.Repository, req.Tag, res.Digest, body)
	for _, text := range res.Warnings {
		addWarning(w, text)
	}
	if !res.Stale.IsZero() {
		addWarning(w, fmt.Sprintf("stale: upstream %s is unreachable; %s was last resolved at %s", p.Host, req.Tag, res.Stale.UTC().Format(time.RFC3339)))
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

// addWarning adds a warning in the one form that registries use
// (distribution-spec, "Warnings").
func addWarning(w http.ResponseWriter, text string) {
	w.Header().Add("Warning", "299 - "+strconv.QuoteToASCII(text))
}

// SourceHeader says where the first chunk of an answer came from, which is all of one
// that has one chunk: memory, disk, peer, layout or upstream.
const SourceHeader = "Granary-Source"

// blob answers a request for a blob.
func (h *Handler) blob(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) (sent bool, err error) {
	c := content.Content{Type: "application/octet-stream", ETag: etag(req.Digest)}
	if r.Method == http.MethodHead {
		c.Size, err = p.Stat(r.Context(), req.Digest)
	} else {
		m := h.registry.mountFor(r.Header.Get(MountHeader), p)
		open := p.Blob
		if m == nil || !m.has(req.Digest) {
			m, open = nil, p.Pull
		}
		var b *Blob
		if b, err = open(r.Context(), req.Digest); err == nil {
			defer b.Release()
			c.Size = b.Size()
			reading, end := h.registry.reads.begin(p.Repository, req.Digest, c.Size)
			defer end()
			repository := p
			c.Open = func(p content.Part) (content.Body, error) {
				if r.Header.Get("Range") == "" { // who asks for parts wants them soon
					h.rebuild(r.Context(), http.NewResponseController(w), repository, b)
				}
				if m != nil {
					m.readingLayer(req.Digest, p.Offset, p.Length)
				}
				body, err := h.open(r.Context(), http.NewResponseController(w), repository, b, p, m, reading.from(p.Offset))
				if from, ok := body.(interface{ from() string }); ok && err == nil {
					w.Header().Set(SourceHeader, from.from())
				}
				return body, err
			}
		}
	}
	if err != nil {
		return false, err
	}
	setDigest(w, req.Digest, true)
	return content.Serve(w, r, c)
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
