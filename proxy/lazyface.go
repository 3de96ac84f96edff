package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/content"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/toc"
)

// Headers and types of tables of contents.
const (
	// FormatHeader and WhiteoutsHeader say what a layer's format is, and whether its
	// whiteouts are those of "oci" or of "overlayfs". VerifiedHeader says by what its
	// table was checked: a digest in the "manifest", or nothing but the "layer".
	FormatHeader    = "Granary-Layer-Format"
	WhiteoutsHeader = "Granary-Layer-Whiteouts"
	VerifiedHeader  = "Granary-Toc-Verified"
	// TOCType is the media type of a table of contents.
	TOCType = "application/vnd.granary.toc.v1+json"
)

// errQuery says that a request's parameters cannot be used.
func errQuery(reason string) error { return &ref.Error{Code: "UNSUPPORTED", Reason: reason} }

// layer opens the layer that a request is about.
func (h *Handler) layer(r *http.Request, p *Repository, req ref.Request) (*Layer, error) {
	manifest := digest.Digest(r.URL.Query().Get("manifest"))
	if manifest != "" && manifest.Validate() != nil {
		return nil, errQuery("manifest is not a digest")
	}
	return p.Layer(r.Context(), req.Digest, manifest)
}

// toc answers a request for a layer's table of contents, as JSON: that of eStargz,
// whatever the layer's format is.
func (h *Handler) toc(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) (sent bool, err error) {
	l, err := h.layer(r, p, req)
	if err != nil {
		return false, err
	}
	defer l.Release()
	header := w.Header()
	header.Set("Content-Type", TOCType)
	header.Set("Vary", "Accept-Encoding")
	header.Set(FormatHeader, string(l.Format))
	header.Set(WhiteoutsHeader, whiteoutKind(l.Overlayfs))
	header.Set(VerifiedHeader, verifiedBy(l.Digested))
	if r.Method == http.MethodHead {
		return true, nil
	}
	table, err := l.published()
	if err != nil {
		return false, err
	}
	out := io.Writer(&paced{w: w, client: http.NewResponseController(w)})
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		header.Set("Content-Encoding", "gzip")
		z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
		if err != nil {
			return false, err
		}
		if err := toc.EncodeJSON(z, table); err != nil {
			return true, err
		}
		return true, z.Close()
	}
	return true, toc.EncodeJSON(out, table)
}

// published returns the table for others, who do not read the layer by its chunks: what it unpacks to begins
// with its first byte.
func (l *Layer) published() (*toc.TOC, error) {
	if l.Map == nil {
		return l.TOC, nil
	}
	return l.Cut(func(x toc.Extent) []toc.Extent {
		x.Start, x.End, x.Inner = 0, l.blob.Size(), x.Start
		return []toc.Extent{x}
	})
}

func whiteoutKind(overlayfs bool) string {
	if overlayfs {
		return "overlayfs"
	}
	return "oci"
}

func verifiedBy(digested bool) string {
	if digested {
		return "manifest"
	}
	return "layer"
}

// paced gives the client time for what is written.
type paced struct {
	w      io.Writer
	client *http.ResponseController
}

func (p *paced) Write(b []byte) (int, error) {
	extend(p.client, len(b))
	return p.w.Write(b)
}

// file answers a request for the content of a file of a layer.
func (h *Handler) file(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) (sent bool, err error) {
	from, m := new(travel), h.registry.mountFor(r.Header.Get(MountHeader), p)
	r = r.WithContext(withTravel(r.Context(), from))
	out := &counted{ResponseWriter: w}
	defer func() {
		image := Image{}
		if m != nil {
			image = m.of
		} else if out.n > 0 {
			image = p.image(r.Context(), req.Digest)
		}
		h.registry.served(image, m, from, out.n)
	}()
	return h.checkedFile(out, r, p, req, m)
}

// counted counts the bytes of an answer.
type counted struct {
	http.ResponseWriter
	n int64
}

// Unwrap is for [http.ResponseController].
func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

// checkedFile is file. If what another member has said of the layer is wrong, it is found
// out here, and asked again.
func (h *Handler) checkedFile(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request, m *Mount) (sent bool, err error) {
	l, err := h.layer(r, p, req)
	if err != nil {
		return false, err
	}
	sent, err = h.fileOf(w, r, l, req, m)
	l.Release()
	switch {
	case errors.Is(err, lazy.ErrUnpacked) || l.Map != nil && !l.Borrowed && layerFault(err):
		h.registry.report(fmt.Errorf("layer %s is read by its bytes: %w", req.Digest, err))
		h.registry.cfg.Layers.ReadBytes(req.Digest)
	case l.Borrowed && layerFault(err):
		h.registry.report(fmt.Errorf("layer %s: what another node said of it is wrong: %w", req.Digest, err))
		h.registry.cfg.Layers.Distrust(req.Digest)
	default:
		return sent, err
	}
	if sent {
		return sent, err
	}
	if l, err = h.layer(r, p, req); err != nil {
		return false, err
	}
	defer l.Release()
	return h.fileOf(w, r, l, req, m)
}

func (h *Handler) fileOf(w http.ResponseWriter, r *http.Request, l *Layer, req ref.Request, m *Mount) (sent bool, err error) {
	e, err := fileNamed(l, toc.Clean(r.URL.Query().Get("path")))
	if err != nil {
		return false, err
	}
	w.Header().Set("Cache-Control", "max-age=31536000, immutable")
	return content.Serve(w, r, content.Content{
		Type: "application/octet-stream",
		ETag: fileTag(req.Digest, &e),
		Size: e.Size,
		Open: func(part content.Part) (content.Body, error) {
			if m != nil {
				m.reading(l, &e, part.Offset, part.Length)
			}
			expect := func(off, size int64) { l.expect(&e, off, size) }
			body, err := openFile(http.NewResponseController(w), l.Content(&e), part, expect)
			if m != nil && err == nil {
				m.hasRead(req.Digest, &e)
			}
			return body, err
		},
	})
}

// fileNamed returns the regular file that a name of the layer stands for.
func fileNamed(l *Layer, name string) (e toc.Entry, err error) {
	for range 40 {
		e, ok := l.Lookup(name)
		switch {
		case !ok:
			return e, fmt.Errorf("%q: %w", name, toc.ErrNoFile)
		case e.Type == toc.Regular:
			return e, nil
		case e.Type != toc.Hardlink:
			return e, errQuery(fmt.Sprintf("%q is a %v, which has no content", name, e.Type))
		}
		name = e.Link
	}
	return e, fmt.Errorf("%q: %w: too many hardlinks on the way", name, toc.ErrMalformed)
}

// fileTag identifies a content: by its digest, or by where it is.
func fileTag(layer digest.Digest, e *toc.Entry) string {
	if e.Digest.Known() {
		return etag(e.Digest.OCI())
	}
	sum := sha256.Sum256([]byte(string(layer) + "\x00" + e.Name))
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

// fileBlock is how much of a file is read at a time, in bytes: an extent of eStargz.
const fileBlock = 4 << 20

var fileBlocks = sync.Pool{New: func() any { p := make([]byte, fileBlock); return &p }}

// layerFile sends a part of a file, of which the first block is there before.
type layerFile struct {
	client *http.ResponseController
	from   *toc.Content
	expect func(off, size int64) // is told what is read next
	part   content.Part
	buf    []byte    // what is read, and not sent
	all    *[]byte   // buf's memory, if it is to be used again
	read   int64     // bytes of the part that have been
	sum    hash.Hash // of what was read, if all of the file is; or nil
}

func openFile(client *http.ResponseController, c *toc.Content, part content.Part, expect func(off, size int64)) (content.Body, error) {
	f := &layerFile{client: client, from: c, part: part, expect: expect}
	if part.Length <= fileBlock/64 {
		f.buf = make([]byte, 0, part.Length)
	} else {
		f.all = fileBlocks.Get().(*[]byte)
		f.buf = (*f.all)[:0:min(part.Length, fileBlock)]
	}
	if part.Length == c.Size() && c.Digest().Known() {
		f.sum = sha256.New()
	}
	return f, f.fill()
}

func (f *layerFile) fill() error {
	n := min(f.part.Length-f.read, int64(cap(f.buf)))
	at := f.part.Offset + f.read
	if ahead := (at/fileBlock+1)*fileBlock - at; n > ahead {
		n = ahead // to where an extent is likely to end
	}
	f.buf = f.buf[:n]
	if n > 0 {
		f.expect(at, n)
	}
	_, err := f.from.ReadAt(f.buf, at)
	if err == io.EOF {
		err = nil
	}
	f.read += n
	if err != nil || f.sum == nil || n == 0 {
		return err
	}
	_, _ = f.sum.Write(f.buf) // of a hash
	return f.end()
}

// end compares the file with its digest when all of it has been read, before the last
// block of it is sent.
func (f *layerFile) end() error {
	if f.read < f.part.Length {
		return nil
	}
	if got := toc.Digest(f.sum.Sum(nil)); got != f.from.Digest() {
		return f.from.Mismatch(got)
	}
	f.from.Matched()
	return nil
}

func (f *layerFile) WriteTo(w io.Writer) (sent int64, err error) {
	for len(f.buf) > 0 {
		extend(f.client, len(f.buf))
		n, err := w.Write(f.buf)
		sent += int64(n)
		if err != nil {
			return sent, fmt.Errorf("send: %w", err)
		}
		if err := f.fill(); err != nil {
			return sent, err
		}
	}
	return sent, nil
}

func (f *layerFile) Close() error {
	if f.all != nil {
		fileBlocks.Put(f.all)
		f.all, f.buf = nil, nil
	}
	return nil
}

// layerFault reports whether err says that a layer is not what it should be.
func layerFault(err error) bool {
	var corrupt *toc.CorruptError
	return errors.As(err, &corrupt) || errors.Is(err, toc.ErrMalformed) || errors.Is(err, toc.ErrLimit)
}
