package layout

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Limits of what refers to others.
const (
	readAtOnce = 8       // manifests
	maxPage    = 2 << 20 // bytes of descriptors in an answer
	maxWrongs  = 1024    // faults that are not reported again
)

// subject is what the manifest of an entry refers to, which never changes. The zero is
// that of one that refers to nothing.
type subject struct {
	of         digest.Digest
	descriptor json.RawMessage // of the manifest itself, for lists of referrers
}

// referrers answers referrers/<digest> (distribution-spec, "Listing Referrers"). Where
// there are none it is not found, and some other place may know.
func (p *Repository) referrers(ctx context.Context, of digest.Digest, query url.Values) (*http.Response, error) {
	x, err := p.layout.index(ctx)
	if err != nil {
		return nil, err
	}
	all, err := p.layout.referrers(ctx, x, p.name, of)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("layout %s: referrers of %s: %w", p.layout.files.Path(""), of, chunk.ErrNotFound)
	}
	from, _ := strconv.Atoi(query.Get("from"))
	from = min(max(from, 0), len(all))
	page, size, next := []json.RawMessage{}, 0, url.Values{}
	for i, desc := range all[from:] {
		if size += len(desc); size > maxPage && i > 0 {
			next = url.Values{"from": {strconv.Itoa(from + i)}}
			break
		}
		page = append(page, desc)
	}
	return jsonAnswer(ocispec.MediaTypeImageIndex, struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
	}{2, ocispec.MediaTypeImageIndex, page}, next)
}

// referrers returns the descriptors of what refers to a manifest. Manifests that the
// layout lacks or that are wrong refer to nothing; the latter is reported.
func (l *Layout) referrers(ctx context.Context, x *index, repo ref.Repository, of digest.Digest) (all []json.RawMessage, err error) {
	subjects, err := l.subjectsOf(ctx, x)
	if err != nil {
		return nil, err
	}
	for _, e := range x.entries {
		if s := subjects[e.digest]; s.of == of {
			all = append(all, s.descriptor)
			delete(subjects, e.digest) // it may be named again
		}
	}
	e := x.find(repo, ref.FallbackTag(of))
	if e == nil {
		return all, nil
	}
	m, err := l.manifest(ctx, *e)
	switch {
	case missing(err), l.wrong(err):
		return all, nil
	case err != nil:
		return nil, err
	}
	var fallback struct{ Manifests []json.RawMessage }
	_ = json.Unmarshal(m.Bytes, &fallback) // what is no index names nothing
	for _, raw := range fallback.Manifests {
		if json.Unmarshal(raw, new(ocispec.Descriptor)) == nil {
			all = append(all, raw)
		}
	}
	return all, nil
}

// wrong reports, once, a manifest that is not what its digest promises.
func (l *Layout) wrong(err error) bool {
	if !chunk.IsCorrupt(err) {
		return false
	}
	l.mu.Lock()
	known := l.wrongs[err.Error()]
	if len(l.wrongs) >= maxWrongs {
		clear(l.wrongs)
	}
	l.wrongs[err.Error()] = true
	l.mu.Unlock()
	if !known {
		l.report(err)
	}
	return true
}

// subjectsOf returns what the manifests of an index refer to, by their digests, for the
// caller to keep. What has been read once is not read again.
func (l *Layout) subjectsOf(ctx context.Context, x *index) (map[digest.Digest]subject, error) {
	l.mu.Lock()
	found := make(map[digest.Digest]subject, len(x.byDigest))
	for d := range x.byDigest {
		if s, ok := l.subjects[d]; ok {
			found[d] = s
		}
	}
	l.mu.Unlock()
	var unread []*entry
	for d, e := range x.byDigest {
		if _, ok := found[d]; !ok && checkDigest(d) == nil && e.size <= upstream.MaxManifestSize {
			unread = append(unread, e)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readAtOnce)
	read := make([]subject, len(unread))
	known := make([]bool, len(unread))
	for i, e := range unread {
		g.Go(func() error {
			ctx, _ := chunk.WithOrigin(gctx) // one goroutine has one
			s, err := l.subjectOf(ctx, *e)
			read[i], known[i] = s, err == nil
			if missing(err) || l.wrong(err) {
				return nil
			}
			return err
		})
	}
	err := g.Wait()
	for i, e := range unread {
		if known[i] {
			found[e.digest] = read[i]
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subjects = maps.Clone(found) // and nothing of what the index has not any more
	return found, err
}

// subjectOf reads what a manifest refers to, and describes it (distribution-spec, "Listing
// Referrers": the annotations are the manifest's, the type of an image without one is its
// configuration's).
func (l *Layout) subjectOf(ctx context.Context, e entry) (s subject, err error) {
	m, err := l.manifest(ctx, e)
	if err != nil {
		return s, err
	}
	var body struct {
		ArtifactType string              `json:"artifactType"`
		Config       *ocispec.Descriptor `json:"config"`
		Subject      *ocispec.Descriptor `json:"subject"`
		Annotations  map[string]string   `json:"annotations"`
	}
	if json.Unmarshal(m.Bytes, &body) != nil || body.Subject == nil {
		return s, nil
	}
	desc := m.Descriptor
	desc.ArtifactType, desc.Annotations = body.ArtifactType, body.Annotations
	if desc.ArtifactType == "" && body.Config != nil {
		desc.ArtifactType = body.Config.MediaType
	}
	s.of = body.Subject.Digest
	s.descriptor, err = json.Marshal(desc)
	return s, err
}
