package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/ref"
)

// Limits of the files that say what a layout is.
const (
	maxMarker = 4 << 10 // bytes of oci-layout
	maxIndex  = 8 << 20 // bytes of index.json
	maxNamed  = 1 << 15 // manifests that it names
)

// FormatError says that a file of a layout is missing or not what it should be.
type FormatError struct {
	File string // with the directory or URL of the layout
	Err  error
}

func (e *FormatError) Error() string { return "layout: " + e.File + ": " + e.Err.Error() }
func (e *FormatError) Unwrap() error { return e.Err }

// index is index.json.
type index struct {
	entries  []entry // in its order
	byDigest map[digest.Digest]*entry
}

// entry is a manifest that index.json names.
type entry struct {
	name
	digest       digest.Digest // of any form
	mediaType    string
	artifactType string
	size         int64
}

// parseIndex reads index.json, of a layout that stands for the registry host. What an entry
// says is not checked before it is used: one that is wrong takes no other with it.
func parseIndex(raw []byte, host string) (*index, error) {
	var file struct {
		SchemaVersion int                      `json:"schemaVersion"`
		Manifests     list[ocispec.Descriptor] `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, err
	}
	if file.SchemaVersion != 2 {
		return nil, fmt.Errorf("schemaVersion is %d, not 2", file.SchemaVersion)
	}
	x := &index{entries: make([]entry, len(file.Manifests)), byDigest: make(map[digest.Digest]*entry)}
	for i, desc := range file.Manifests {
		e := &x.entries[i]
		*e = entry{nameOf(desc.Annotations, host), desc.Digest, desc.MediaType, desc.ArtifactType, desc.Size}
		if x.byDigest[e.digest] == nil {
			x.byDigest[e.digest] = e
		}
	}
	return x, nil
}

// list is of at most [maxNamed] manifests or images: the smallest take a hundred times their
// bytes.
type list[T any] []T

// UnmarshalJSON implements [json.Unmarshaler].
func (all *list[T]) UnmarshalJSON(p []byte) error {
	d := json.NewDecoder(bytes.NewReader(p))
	if first, err := d.Token(); err != nil || first != json.Delim('[') {
		return errors.New("manifests is no list")
	}
	for d.More() {
		if len(*all) == maxNamed {
			return fmt.Errorf("it names more than %d manifests", maxNamed)
		}
		var one T
		if err := d.Decode(&one); err != nil {
			return err
		}
		*all = append(*all, one)
	}
	return nil
}

// parseMarker checks oci-layout.
func parseMarker(raw []byte) error {
	var file ocispec.ImageLayout
	if err := json.Unmarshal(raw, &file); err != nil {
		return err
	}
	if file.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("imageLayoutVersion is %q, not %q", file.Version, ocispec.ImageLayoutVersion)
	}
	return nil
}

// find returns the entry of a tag, nil if there is none.
func (x *index) find(repo ref.Repository, tag string) (found *entry) {
	for i := range x.entries {
		e := &x.entries[i]
		switch {
		case e.tag != tag || !e.in(repo):
		case !e.any():
			return e
		case found == nil:
			found = e
		}
	}
	return found
}

// tags returns the tags of a repository, in order.
func (x *index) tags(repo ref.Repository) (tags []string) {
	for _, e := range x.entries {
		if e.in(repo) {
			tags = append(tags, e.tag)
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// checkDigest returns an error for a digest that nothing can be checked by.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		if errors.Is(err, digest.ErrDigestUnsupported) {
			return fmt.Errorf("digest %q: its algorithm is not available: %w", string(d), err)
		}
		return fmt.Errorf("digest %q: %w", string(d), err)
	}
	return nil
}
