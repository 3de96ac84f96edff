package wire

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// MaxOlder is how many older layers a question for [Rebuild] may name.
const MaxOlder = 16

// Sized is a blob and its size in bytes.
type Sized struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// Again is a layer that is to be made again of what older ones have: the reference of a question for
// [Rebuild].
type Again struct {
	Layer digest.Digest `json:"layer"`
	Size  int64         `json:"size"`          // in bytes
	Old   []Sized       `json:"old,omitempty"` // of the same repository, which whoever asks has, the likeliest first
}

// Reference returns what is asked for as a question has it.
func (a Again) Reference() string {
	text, err := json.Marshal(a)
	if err != nil {
		return "" // a digest that is no text; nobody knows of it
	}
	return string(text)
}

// ReadAgain reads the reference of a question for [Rebuild].
func ReadAgain(reference string) (a Again, err error) {
	if err := json.Unmarshal([]byte(reference), &a); err != nil {
		return a, fmt.Errorf("wire: rebuild: %w", err)
	}
	if len(a.Old) > MaxOlder {
		return a, errors.New("wire: rebuild: too many older layers")
	}
	for _, b := range append([]Sized{{a.Layer, a.Size}}, a.Old...) {
		if b.Digest.Validate() != nil || b.Size <= 0 || b.Size > chunk.MaxBlobSize {
			return a, fmt.Errorf("wire: rebuild: %q of %d bytes", string(b.Digest), b.Size)
		}
	}
	return a, nil
}
