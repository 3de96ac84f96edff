package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Repository is a repository of a layout. Its methods are those of an
// [upstream.Repository], and its answers and chunks have the name of [Origin].
type Repository struct {
	layout *Layout
	name   ref.Repository
}

// Resolve returns the descriptor of the manifest that reference, a tag or a digest, names
// now.
func (p *Repository) Resolve(ctx context.Context, reference string) (upstream.Resolved, error) {
	e, err := p.find(ctx, reference)
	if err != nil {
		return upstream.Resolved{}, err
	}
	desc := ocispec.Descriptor{MediaType: e.mediaType, Digest: e.digest, Size: e.size}
	if desc.MediaType == "" {
		m, err := p.layout.manifest(ctx, *e)
		return answered(ctx, m.Resolved, err)
	}
	_, err = p.layout.stat(ctx, *e)
	return answered(ctx, upstream.Resolved{Descriptor: desc}, err)
}

// Manifest returns a manifest's exact bytes too, at most [upstream.MaxManifestSize],
// checked against its digest.
func (p *Repository) Manifest(ctx context.Context, reference string) (upstream.Manifest, error) {
	e, err := p.find(ctx, reference)
	if err != nil {
		return upstream.Manifest{}, err
	}
	m, err := p.layout.manifest(ctx, *e)
	return answered(ctx, m, err)
}

// Stat returns the size of a blob in bytes.
func (p *Repository) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	if err := checkDigest(d); err != nil {
		return 0, err
	}
	size, err := p.layout.files.Stat(ctx, d)
	return answered(ctx, size, err)
}

// Blob returns a source of the chunks of blobs, checked as far as each can be alone.
func (p *Repository) Blob() chunk.Source { return chunk.Named(Origin, p.layout.files.Blob()) }

// Doubt has a blob that did not match its digest looked at again, before any more of it is
// given out.
func (p *Repository) Doubt(d digest.Digest) {
	if files, ok := p.layout.files.(interface{ Doubt(digest.Digest) }); ok {
		files.Doubt(d)
	}
}

// Get answers what a registry is asked beside that: tags/list, referrers/<digest>, and
// blobs/<digest> with a range.
func (p *Repository) Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error) {
	kind, d, _ := strings.Cut(path, "/")
	var resp *http.Response
	var err error
	switch kind {
	case "tags":
		resp, err = p.tags(ctx, query)
	case "referrers":
		resp, err = p.referrers(ctx, digest.Digest(d), query)
	case "blobs":
		if err = checkDigest(digest.Digest(d)); err == nil {
			resp, err = p.layout.files.Range(ctx, digest.Digest(d), header.Get("Range"))
		}
	default:
		err = fmt.Errorf("layout: %s: %w", path, chunk.ErrNotFound)
	}
	return answered(ctx, resp, err)
}

// answered names an answer as one of a layout.
func answered[T any](ctx context.Context, v T, err error) (T, error) {
	if err == nil {
		chunk.SetOrigin(ctx, Origin)
	}
	return v, err
}

// find returns what index.json says of a tag or digest. Of a digest it need not say
// anything.
func (p *Repository) find(ctx context.Context, reference string) (*entry, error) {
	x, err := p.layout.index(ctx)
	if err != nil {
		return nil, err
	}
	if strings.Contains(reference, ":") {
		d := digest.Digest(reference)
		if e := x.byDigest[d]; e != nil {
			return e, nil
		}
		return &entry{digest: d, size: -1}, checkDigest(d)
	}
	if e := x.find(p.name, reference); e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("layout %s: %s:%s: %w", p.layout.files.Path(""), p.name, reference, chunk.ErrNotFound)
}

// stat returns the size of an entry's manifest. It is the one that index.json gives, if
// that gives one.
func (l *Layout) stat(ctx context.Context, e entry) (int64, error) {
	if err := checkDigest(e.digest); err != nil {
		return 0, l.malformed(ocispec.ImageIndexFile, err)
	}
	size, err := l.files.Stat(ctx, e.digest)
	if err == nil && e.size >= 0 && size != e.size {
		err = &chunk.CorruptError{
			Source: Origin + " " + l.files.Path(blobPath(e.digest)),
			Ref:    chunk.Ref{Blob: e.digest, Total: e.size, Size: e.size},
			Reason: fmt.Sprintf("the file has %d bytes, and %d by %s", size, e.size, ocispec.ImageIndexFile),
		}
	}
	return size, err
}

// manifest reads the manifest of an entry.
func (l *Layout) manifest(ctx context.Context, e entry) (upstream.Manifest, error) {
	size, err := l.stat(ctx, e)
	if err != nil {
		return upstream.Manifest{}, err
	}
	if size > upstream.MaxManifestSize {
		return upstream.Manifest{}, fmt.Errorf("layout: %s: the manifest has %d bytes, and may have %d", l.files.Path(blobPath(e.digest)), size, upstream.MaxManifestSize)
	}
	raw, err := l.all(ctx, e.digest, size)
	if err != nil {
		return upstream.Manifest{}, err
	}
	mediaType := e.mediaType
	if mediaType == "" {
		if mediaType = mediaTypeOf(raw); mediaType == "" {
			return upstream.Manifest{}, fmt.Errorf("layout: %s: it is no manifest: %w", l.files.Path(blobPath(e.digest)), chunk.ErrNotFound)
		}
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: e.digest, Size: size}
	return upstream.Manifest{Resolved: upstream.Resolved{Descriptor: desc}, Bytes: raw}, nil
}

// all reads a blob that fits into memory, and checks all of it.
func (l *Layout) all(ctx context.Context, d digest.Digest, size int64) ([]byte, error) {
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, err
	}
	refs := make([]chunk.Ref, m.Len())
	for i := range refs {
		refs[i] = m.At(i)
	}
	raw := make([]byte, size)
	err = chunk.GetRun(ctx, l.files.Blob(), refs, func(ref chunk.Ref, p []byte) error {
		copy(raw[ref.Offset:], p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return raw, chunk.Ref{Blob: d, Total: size, Size: size}.Check(Origin+" "+l.files.Path(blobPath(d)), raw)
}

// mediaTypeOf returns the media type of a manifest that nothing else says it of: its own
// word, or what its fields show, for it need not say (image-spec, manifest.md). Anything
// else, as a configuration is, has none.
func mediaTypeOf(raw []byte) string {
	const maxMediaType = 255 // bytes (RFC 6838, section 4.2)
	var m struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return ""
	}
	own, _, err := mime.ParseMediaType(m.MediaType)
	switch {
	case err == nil && len(own) <= maxMediaType:
		return own
	case m.SchemaVersion == 2 && m.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	case m.SchemaVersion == 2 && m.Config != nil && m.Layers != nil:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}

// tags answers tags/list (distribution-spec, "Listing Tags").
func (p *Repository) tags(ctx context.Context, query url.Values) (*http.Response, error) {
	x, err := p.layout.index(ctx)
	if err != nil {
		return nil, err
	}
	tags := x.tags(p.name)
	if len(tags) == 0 {
		return nil, fmt.Errorf("layout %s: tags of %s: %w", p.layout.files.Path(""), p.name, chunk.ErrNotFound)
	}
	if last := query.Get("last"); last != "" { // exclusive
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	next := url.Values{}
	if n, err := strconv.Atoi(query.Get("n")); err == nil && n > 0 && n < len(tags) {
		tags = tags[:n]
		next = url.Values{"n": {query.Get("n")}, "last": {tags[n-1]}}
	}
	return jsonAnswer("application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{p.name.Name, append([]string{}, tags...)}, next)
}

// jsonAnswer is a page of a list, and a link to the next one if there is one (RFC 8288).
func jsonAnswer(mediaType string, v any, next url.Values) (*http.Response, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	h := http.Header{"Content-Type": {mediaType}}
	if len(next) > 0 {
		h.Set("Link", "<?"+next.Encode()+`>; rel="next"`)
	}
	return answer(http.StatusOK, h, bytes.NewReader(p)), nil
}

func answer(code int, h http.Header, body *bytes.Reader) *http.Response {
	h.Set("Content-Length", strconv.FormatInt(body.Size(), 10))
	return &http.Response{
		Status: strconv.Itoa(code) + " " + http.StatusText(code), StatusCode: code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(body), ContentLength: body.Size(),
	}
}

// blobPath returns where a layout has a blob (image-spec, image-layout.md, "Blobs"), of a
// digest that has been checked.
func blobPath(d digest.Digest) string {
	algorithm, encoded, _ := strings.Cut(string(d), ":")
	return ocispec.ImageBlobsDir + "/" + algorithm + "/" + encoded
}

// missing reports whether err only says that a layout lacks something.
func missing(err error) bool { return errors.Is(err, chunk.ErrNotFound) }
