package configure

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// recordSuffix makes the name of the record of a file. No runtime reads such a file:
// containerd looks for hosts.toml and certificates, containers/image for *.conf.
const recordSuffix = ".granary"

// record is what is known of a file that was changed, as JSON beside it.
type record struct {
	Version int      `json:"version"`
	Note    string   `json:"note"`
	Existed bool     `json:"existed"`
	Before  []byte   `json:"before"` // base64 in JSON
	After   []string `json:"after"`  // SHA-256 of what was written, the latest first
	Pieces  []string `json:"pieces"` // what was inserted
	Made    int      `json:"made"`   // directories that were made for the file
}

const (
	recordVersion = 1
	recordNote    = "What 'granary configure' changed in the file beside this one. 'granary configure RUNTIME --undo' needs it."
	maxMade       = 16
)

// record reads the record of a file; nil if it has none.
func (h host) record(name string) (*record, *file, error) {
	f, err := h.read(name + recordSuffix)
	if err != nil || !f.there {
		return nil, f, err
	}
	var r record
	if err := json.Unmarshal(f.text, &r); err != nil {
		return nil, nil, fmt.Errorf("%s: it is damaged: %w; restore %s by hand, and remove it", f.name, err, name)
	}
	if r.Version != recordVersion || r.Made < 0 || r.Made > maxMade {
		return nil, nil, fmt.Errorf("%s: it is of another version of this program, or damaged", f.name)
	}
	return &r, f, nil
}

func (r *record) encode() []byte {
	p, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic(err) // of strings and numbers
	}
	return append(p, '\n')
}

// wrote reports whether a text is as it was written.
func (r *record) wrote(text []byte) bool { return slices.Contains(r.After, sum(text)) }

// base returns what a file would be without what was inserted, and whether it would
// be at all.
func (r *record) base(f *file, decode func([]byte) (map[string]any, error)) (text []byte, there bool, err error) {
	switch {
	case !f.there:
		return nil, false, nil
	case r.wrote(f.text):
		return r.Before, r.Existed, nil
	case r.Existed && bytes.Equal(f.text, r.Before): // a crash came between the two writes, or somebody else has undone it
		return f.text, true, nil
	}
	text, err = cut(f.text, r.Pieces, decode)
	if err != nil {
		return nil, false, err
	}
	return text, r.Existed || len(bytes.TrimSpace(text)) > 0, nil
}

func sum(text []byte) string {
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:])
}
