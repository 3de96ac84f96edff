package chunk

import (
	"errors"
	"fmt"
)

// ErrNotFound says that a source does not have a chunk, and that asking another
// source is the right thing to do.
var ErrNotFound = errors.New("not found")

// ErrDenied says that whoever asks may not have a chunk. It tells nothing of the
// chunk, nor of anybody else who asks.
var ErrDenied = errors.New("denied")

// CorruptError says that bytes are not what their digest promises.
type CorruptError struct {
	Source string // who gave the bytes: "disk", "upstream", …
	Ref    Ref    // what they were given as; the whole blob when its digest failed
	Reason string // what was expected and what came
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("chunk %s from %s: corrupt: %s", e.Ref, e.Source, e.Reason)
}

// IsCorrupt reports whether err says that bytes were wrong.
func IsCorrupt(err error) bool {
	var c *CorruptError
	return errors.As(err, &c)
}

// notFoundOnly reports whether err is a plain miss: not found, and nothing
// worse joined to it.
func notFoundOnly(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			if !notFoundOnly(e) {
				return false
			}
		}
		return true
	}
	return errors.Is(err, ErrNotFound)
}
