package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// MaxManifestSize is the size of the largest manifest that is read, in bytes: as
// much as containerd accepts.
const MaxManifestSize = 4 * 1048 * 1048

const (
	contentDigest    = "Docker-Content-Digest"
	unknownMediaType = "application/octet-stream"
	maxMediaType     = 255 // bytes (RFC 6838, section 4.2)
)

// manifestTypes are always all asked for: without them some registries convert
// what they have, to other bytes, or say that they have nothing.
var manifestTypes = strings.Join([]string{
	ocispec.MediaTypeImageIndex,
	ocispec.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"*/*",
}, ", ")

func acceptManifests() http.Header { return http.Header{"Accept": {manifestTypes}} }

// Resolved is what a reference names.
type Resolved struct {
	ocispec.Descriptor
	// Warnings are the texts of the answer's Warning fields with code 299
	// (distribution-spec, "Warnings"), at most 4 KiB together.
	Warnings []string
}

// Manifest is a manifest as the registry sent it.
type Manifest struct {
	Resolved
	Bytes []byte
}

// Resolve returns the descriptor of the manifest that reference, a tag or a
// digest, names now. It asks by HEAD, and gets the manifest itself only if the
// answer lacks a digest, a size or a media type. A digest in the answer to a tag
// is taken at the registry's word; [Repository.Manifest] checks.
func (p *Repository) Resolve(ctx context.Context, reference string) (Resolved, error) {
	want, err := parseReference(reference)
	if err != nil {
		return Resolved{}, err
	}
	a, err := p.ask(ctx, http.MethodHead, "manifests/"+reference, nil, acceptManifests(), okToHead)
	if err != nil {
		return Resolved{}, err
	}
	defer a.body.Close()
	desc := ocispec.Descriptor{MediaType: contentType(a.Header), Digest: want, Size: a.ContentLength}
	given, known := givenDigest(a.Header)
	switch {
	case want == "" && known:
		desc.Digest = given
	case known && given.Algorithm() == want.Algorithm() && given != want:
		return Resolved{}, wrongManifest(want, a.ContentLength, "the registry says that it has "+string(given))
	}
	if a.StatusCode != http.StatusOK || desc.Digest == "" || desc.Size < 0 || desc.MediaType == "" {
		a.body.Close()
		m, err := p.Manifest(ctx, reference)
		return m.Resolved, err
	}
	return Resolved{desc, warnings(a.Header)}, nil
}

// okToHead reports whether an answer to HEAD is 200, or no answer at all.
func okToHead(a *answer) bool { return ok(a) || a.headUnanswered() }

// headUnanswered reports whether an answer to HEAD says nothing of an answer to
// GET: the method is not supported, or a URL that was signed for GET refused it.
func (a *answer) headUnanswered() bool {
	switch a.StatusCode {
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return a.away
	}
	return false
}

// Manifest returns the manifest that reference, a tag or a digest, names now: its
// descriptor and its exact bytes, at most [MaxManifestSize].
//
// The bytes have the digest that was asked for, and the one in the answer's
// Docker-Content-Digest, which may be of another algorithm, unless that
// algorithm is not known here; else the error is a [*chunk.CorruptError]. Where
// neither gives a digest it is SHA-256. The media type is that of Content-Type,
// without parameters; without one it is the manifest's mediaType; without that,
// application/octet-stream.
func (p *Repository) Manifest(ctx context.Context, reference string) (Manifest, error) {
	want, err := parseReference(reference)
	if err != nil {
		return Manifest{}, err
	}
	return patiently(ctx, func() (Manifest, error) { return p.getManifest(ctx, reference, want) })
}

func (p *Repository) getManifest(ctx context.Context, reference string, want digest.Digest) (Manifest, error) {
	a, err := p.do(ctx, http.MethodGet, "manifests/"+reference, nil, acceptManifests())
	if err != nil {
		return Manifest{}, err
	}
	defer a.body.Close()
	if !ok(a) {
		return Manifest{}, a.failure()
	}
	raw, err := a.readManifest()
	if err != nil {
		return Manifest{}, err
	}
	d, err := a.digestOf(raw, want)
	if err != nil {
		return Manifest{}, err
	}
	mediaType := contentType(a.Header)
	if mediaType == "" || len(mediaType) > maxMediaType {
		mediaType = ownMediaType(raw)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}
	return Manifest{Resolved{desc, warnings(a.Header)}, raw}, nil
}

// warnings returns the texts of an answer's warnings. Only those with code 299,
// agent "-" and no date are a registry's for its users.
func warnings(h http.Header) []string {
	const maxBytes = 4096
	var texts []string
	n := 0
	for _, v := range h.Values("Warning") {
		text, err := strconv.Unquote(strings.TrimPrefix(v, "299 - "))
		n += len(v)
		if !strings.HasPrefix(v, "299 - ") || err != nil || n > maxBytes {
			continue
		}
		texts = append(texts, text)
	}
	return texts
}

func (a *answer) readManifest() ([]byte, error) {
	tooLarge := fmt.Errorf("%s: the manifest is larger than %d bytes", a.subject(), MaxManifestSize)
	if a.ContentLength > MaxManifestSize {
		return nil, tooLarge
	}
	raw, err := io.ReadAll(io.LimitReader(a.body, MaxManifestSize+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxManifestSize {
		return nil, tooLarge
	}
	return raw, nil
}

// digestOf returns the digest of raw: want, unless that is "". It is checked
// against want and against what the answer's header says.
func (a *answer) digestOf(raw []byte, want digest.Digest) (digest.Digest, error) {
	given, _ := givenDigest(a.Header)
	for _, d := range []digest.Digest{want, given} {
		if d == "" {
			continue
		}
		if got := d.Algorithm().FromBytes(raw); got != d {
			return "", wrongManifest(d, int64(len(raw)), fmt.Sprintf("digest is %s", got))
		}
	}
	switch {
	case want != "":
		return want, nil
	case given != "":
		return given, nil
	}
	return digest.FromBytes(raw), nil
}

func wrongManifest(d digest.Digest, size int64, reason string) error {
	return &chunk.CorruptError{Source: "upstream", Ref: chunk.Ref{Blob: d, Total: size, Size: size}, Reason: reason}
}

// Get asks for any other path below the repository, such as tags/list or
// referrers/sha256:…, for the caller to read and close. An answer other than 2xx
// is a [*StatusError]. Of header, Authorization is replaced.
func (p *Repository) Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error) {
	a, err := p.ask(ctx, http.MethodGet, path, query, header, func(a *answer) bool { return a.StatusCode/100 == 2 })
	if err != nil {
		return nil, err
	}
	return a.Response, nil
}

// NextPage returns the query of the link of an answer to [Repository.Get] whose
// relation is next (RFC 8288), nil without one.
func NextPage(h http.Header) url.Values {
	for _, field := range h.Values("Link") {
		for link := range strings.SplitSeq(field, ",") {
			target, params, _ := strings.Cut(strings.TrimSpace(link), ">")
			u, err := url.Parse(strings.TrimPrefix(target, "<"))
			if err == nil && strings.HasPrefix(target, "<") && strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
				return u.Query()
			}
		}
	}
	return nil
}

// parseReference returns the digest that reference is, or "" for a tag.
func parseReference(reference string) (digest.Digest, error) {
	if reference == "" || strings.Contains(reference, "/") {
		return "", fmt.Errorf("reference %q is neither tag nor digest", reference)
	}
	if !strings.Contains(reference, ":") {
		return "", nil
	}
	return parseDigest(digest.Digest(reference))
}

// parseDigest returns d if it is one that can be checked here.
func parseDigest(d digest.Digest) (digest.Digest, error) {
	err := d.Validate()
	switch {
	case errors.Is(err, digest.ErrDigestUnsupported):
		algorithm, _, _ := strings.Cut(string(d), ":")
		return "", fmt.Errorf("digest %q: algorithm %q is not available: %w", string(d), algorithm, err)
	case err != nil:
		return "", fmt.Errorf("digest %q: %w", string(d), err)
	}
	return d, nil
}

// givenDigest returns the digest that a registry gives its answer. One that is
// malformed or of an unknown algorithm is as good as none.
func givenDigest(h http.Header) (digest.Digest, bool) {
	d, err := parseDigest(digest.Digest(h.Get(contentDigest)))
	return d, err == nil
}

// contentType returns an answer's media type without parameters, or "".
func contentType(h http.Header) string {
	v := h.Get("Content-Type")
	t, _, err := mime.ParseMediaType(v)
	if err != nil {
		t, _, _ = strings.Cut(v, ";")
		t = strings.TrimSpace(t)
	}
	return t
}

// ownMediaType returns what a manifest says of its own media type.
func ownMediaType(raw []byte) string {
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return unknownMediaType
	}
	t, _, err := mime.ParseMediaType(m.MediaType)
	if err != nil || len(t) > maxMediaType {
		return unknownMediaType
	}
	return t
}
