package compat

import (
	"encoding/json"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Entry is an entry of an index, with what its platform says of compatibility.
type Entry struct {
	ocispec.Descriptor
	// Compat is the descriptor of a document, or nil if nothing is said.
	Compat *ocispec.Descriptor
	// Malformed says that what stands there is no descriptor, and Compat is nil.
	Malformed bool
}

// platformKeys are those under which a platform has the descriptor: that of the proposals' JSON, and
// that of their headings.
var platformKeys = []string{"compat", "compatibilities"}

// ParseIndex returns the entries of an index, in order. A manifest that is none has none.
func ParseIndex(p []byte) ([]Entry, error) {
	if len(p) > MaxSize {
		return nil, fmt.Errorf("index: more than %d bytes", MaxSize)
	}
	var known struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	var extended struct {
		Manifests []struct {
			Platform map[string]json.RawMessage `json:"platform"`
		} `json:"manifests"`
	}
	for _, v := range []any{&known, &extended} {
		if err := json.Unmarshal(p, v); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	entries := make([]Entry, len(known.Manifests))
	for i, desc := range known.Manifests {
		entries[i].Descriptor = desc
		for _, name := range platformKeys {
			if raw := extended.Manifests[i].Platform[name]; raw != nil && !entries[i].says() {
				entries[i].Compat = descriptor(raw)
				entries[i].Malformed = entries[i].Compat == nil
			}
		}
	}
	return entries, nil
}

func (e Entry) says() bool { return e.Compat != nil || e.Malformed }

// descriptor returns nil for what is none.
func descriptor(raw json.RawMessage) *ocispec.Descriptor {
	var d ocispec.Descriptor
	if json.Unmarshal(raw, &d) != nil || d.Digest.Validate() != nil || d.Size < 0 || d.MediaType == "" {
		return nil
	}
	return &d
}
