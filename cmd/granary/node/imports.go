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
	// Offset is how many bytes from its beginning need not be sent.
	Offset int64 `json:"offset"`
}

// importRoutes are those at /api/v1/import. Blobs come first, each by a PUT of what follows the
// offset that a GET has found, unless that has found all of it; then what belongs to which
// repository, by one POST for each. A PUT is answered with 409 if what was there before is to
// blame for a blob that is wrong: then it is to be sent from its beginning on.
func (n *Node) importRoutes() []route {
	return []route{
		{"GET /api/v1/import/{digest}", func(w http.ResponseWriter, r *http.Request) {
			b, err := importOf(r)
			answerJSON(w, ImportStatus{
				Stored: n.registry.Stored(b.digest, b.size), Imported: n.catalog.Imported(b.digest), Offset: n.registry.Begun(b.repository, b.digest, b.size),
			}, err)
		}},
		{"PUT /api/v1/import/{digest}", func(w http.ResponseWriter, r *http.Request) {
			b, err := importOf(r)
			if err == nil {
				err = n.keeps()
			}
			if err == nil && r.ContentLength >= 0 && r.ContentLength != b.size-b.offset {
				err = fmt.Errorf("import: blob %s: there are %d bytes, and %d of %d are to come", b.digest, r.ContentLength, b.size-b.offset, b.size)
			}
			if err == nil {
				err = n.registry.ImportBlob(r.Context(), b.repository, b.digest, b.size, b.offset, r.Body)
			}
			if errors.Is(err, proxy.ErrDropped) {
				http.Error(w, err.Error(), http.StatusConflict)
				return
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

// importedBlob is the blob that a request is about.
type importedBlob struct {
	repository   ref.Repository
	digest       digest.Digest
	size, offset int64
}

func importOf(r *http.Request) (b importedBlob, err error) {
	b.digest = digest.Digest(r.PathValue("digest"))
	if err = b.digest.Validate(); err != nil {
		return b, fmt.Errorf("import: digest %q: %w", string(b.digest), err)
	}
	query := r.URL.Query()
	if b.size, err = strconv.ParseInt(query.Get("size"), 10, 64); err != nil {
		return b, fmt.Errorf("import: %s: size: %w", b.digest, err)
	}
	if at := query.Get("offset"); at != "" {
		if b.offset, err = strconv.ParseInt(at, 10, 64); err != nil {
			return b, fmt.Errorf("import: %s: offset: %w", b.digest, err)
		}
	}
	b.repository, err = repositoryOf(r)
	return b, err
}

func repositoryOf(r *http.Request) (ref.Repository, error) {
	parsed, err := ref.Parse(r.URL.Query().Get("repository"), "")
	if err != nil {
		return ref.Repository{}, fmt.Errorf("import: repository: %w", err)
	}
	return parsed.Repository, nil
}
