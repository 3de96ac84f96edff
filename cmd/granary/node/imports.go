package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
)

// maxImport bounds what an import says of itself, in bytes of JSON.
const maxImport = 64 << 20

// ImportStatus is what a node has of a blob that is to be imported.
type ImportStatus struct {
	Stored bool `json:"stored"` // all of it, from wherever
	// Imported says that it was imported before: then whoever has not got it may import what
	// refers to it. Of anything else a digest must not do for the bytes.
	Imported bool `json:"imported"`
}

// importRoutes are those at /api/v1/import. Blobs come first, each by a PUT that need not be made
// for those that a GET finds; then what belongs to which repository, by one POST for each.
func (n *Node) importRoutes() []route {
	return []route{
		{"GET /api/v1/import/{digest}", func(w http.ResponseWriter, r *http.Request) {
			_, d, size, err := importOf(r)
			answerJSON(w, ImportStatus{Stored: n.registry.Stored(d, size), Imported: n.catalog.Imported(d)}, err)
		}},
		{"PUT /api/v1/import/{digest}", func(w http.ResponseWriter, r *http.Request) {
			repo, d, size, err := importOf(r)
			if err == nil {
				err = n.keeps()
			}
			if err == nil {
				err = n.registry.ImportBlob(r.Context(), repo, d, size, r.Body)
			}
			answerJSON(w, struct{}{}, err)
		}},
		{"POST /api/v1/import", func(w http.ResponseWriter, r *http.Request) {
			answerJSON(w, struct{}{}, n.importNames(w, r))
		}},
	}
}

// importNames records what belongs to a repository.
func (n *Node) importNames(w http.ResponseWriter, r *http.Request) error {
	if err := n.keeps(); err != nil {
		return err
	}
	repo, err := repositoryOf(r)
	if err != nil {
		return err
	}
	var in proxy.Import
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxImport)).Decode(&in); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if err := n.store.Disk.Sync(); err != nil { // which also ends what is being written
		return err
	}
	return n.registry.Import(repo, in)
}

// keeps returns an error if nothing is kept.
func (n *Node) keeps() error {
	if n.store.Disk == nil {
		return errors.New(n.Status().Degraded)
	}
	return nil
}

// importOf reads what a request is about.
func importOf(r *http.Request) (repo ref.Repository, d digest.Digest, size int64, err error) {
	d = digest.Digest(r.PathValue("digest"))
	if err = d.Validate(); err != nil {
		return repo, d, 0, fmt.Errorf("import: digest %q: %w", string(d), err)
	}
	if size, err = strconv.ParseInt(r.URL.Query().Get("size"), 10, 64); err != nil {
		return repo, d, 0, fmt.Errorf("import: %s: size: %w", d, err)
	}
	repo, err = repositoryOf(r)
	return repo, d, size, err
}

func repositoryOf(r *http.Request) (ref.Repository, error) {
	parsed, err := ref.Parse(r.URL.Query().Get("repository"), "")
	if err != nil {
		return ref.Repository{}, fmt.Errorf("import: repository: %w", err)
	}
	return parsed.Repository, nil
}
