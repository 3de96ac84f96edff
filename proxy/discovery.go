package proxy

import (
	"encoding/json"
	"net/http"
	"net/url"
	"sort"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/ref"
)

// Limits of a page of ours.
const (
	maxTagsPage      = 10_000
	maxReferrersPage = 2 << 20 // bytes of descriptors
)

// tags answers a request for the tags of a repository (distribution-spec,
// "Listing Tags").
func (h *Handler) tags(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) error {
	q := r.URL.Query()
	n := maxTagsPage
	if q.Has("n") {
		given, err := strconv.ParseUint(q.Get("n"), 10, 31)
		if err != nil {
			return &ref.Error{Code: "UNSUPPORTED", Reason: "n is not a number of tags"}
		}
		n = min(int(given), n)
	}
	last := q.Get("last")
	all, err := p.Tags(r.Context(), !q.Has("last"))
	if err != nil {
		return err
	}
	if q.Has("last") { // exclusive
		all = all[sort.Search(len(all), func(i int) bool { return all[i] > last }):]
	}
	page := all[:min(n, len(all))]
	if len(page) > 0 && len(page) < len(all) {
		q.Set("n", strconv.Itoa(n))
		q.Set("last", page[len(page)-1])
		linkNext(w, r, q)
	}
	return writeJSON(w, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{req.Name, append([]string{}, page...)})
}

// referrers answers a request for the manifests that refer to another
// (distribution-spec, "Listing Referrers"). Pages are cut by size, for clients
// read no larger indexes.
func (h *Handler) referrers(w http.ResponseWriter, r *http.Request, p *Repository, req ref.Request) error {
	q := r.URL.Query()
	after := q.Get("after")
	all, err := p.Referrers(r.Context(), req.Digest, after == "")
	if err != nil {
		return err
	}
	index := struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
	}{2, ocispec.MediaTypeImageIndex, []json.RawMessage{}}
	size, last := 0, ""
	for _, d := range all {
		switch {
		case after != "":
			if string(d.Digest) == after {
				after = ""
			}
			continue
		case q.Has("artifactType") && d.ArtifactType != q.Get("artifactType"):
			continue
		}
		if size += len(d.JSON); size > maxReferrersPage && last != "" {
			q.Set("after", last)
			linkNext(w, r, q)
			break
		}
		index.Manifests, last = append(index.Manifests, d.JSON), string(d.Digest)
	}
	if q.Has("artifactType") {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeJSON(w, ocispec.MediaTypeImageIndex, index)
}

// linkNext links to the next page, relatively: some clients follow no link to
// another host (RFC 8288).
func linkNext(w http.ResponseWriter, r *http.Request, q url.Values) {
	next := url.URL{Path: r.URL.Path, RawQuery: q.Encode()}
	w.Header().Set("Link", "<"+next.String()+`>; rel="next"`)
}

func writeJSON(w http.ResponseWriter, mediaType string, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(p)))
	_, _ = w.Write(p) // the client may have gone
	return nil
}
