// Package recipe makes a layer's gzip again, byte for byte, from the tar that it
// unpacks to.
//
// Compressing is a function: the same encoder at the same level makes the same bytes of
// the same tar. A [Recipe] says which encoder that was, and has the few bytes that no
// encoder tells: the headers of the gzip members, and what follows the last one. [Find]
// looks for it, once, where the layer is; [Recipe.Rebuild] follows it where there is only
// the tar. A recipe is some 150 bytes, and a few more for each member.
//
// Only encoders that are linked can be followed. They are few, but the usual programs have them: that
// of Go's standard library (BuildKit, containerd, crane, eStargz), and klauspost/compress,
// mostly by way of pgzip (buildah, podman, skopeo). Layers by GNU gzip, pigz, zlib (Python, Java,
// Node.js) and libdeflate have no recipe. There is a zlib in Go, modernc.org/z, which makes the
// same bytes as zlib does; but it is 1.2.11, translated with its pointers and with CVE-2018-25032, and what
// is compressed here may be made to harm.
//
// # Trust
//
// Find has compared all of the layer with what the recipe makes. A recipe from elsewhere
// may lie, and a tar may be another one: then Rebuild makes other bytes than the layer's, never
// more of them, and whoever calls it compares their digest with the layer's.
package recipe

import (
	"errors"
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// ErrNone is what Find's error wraps for a layer that is in order but cannot be made again.
var ErrNone = errors.New("there is none")

const (
	// MaxSize is the most bytes that an encoded recipe has: 1 MiB. So many are those of an
	// eStargz layer of 200,000 files.
	MaxSize = 1 << 20

	maxTar     = 1 << 40 // bytes of a tar, and of a blob. Sums of sizes stay far from overflowing
	maxHeader  = 64 << 10
	maxTail    = 64 << 10
	minHeader  = 10          // RFC 1952 section 2.3
	maxShrunk  = 1032        // bytes that a byte of deflate may inflate to: 258 by 2 bits
	maxRound   = 64          // bytes by which a member is larger than what is in it, besides its header
	maxMembers = MaxSize / 4 // to begin one costs some 50 µs of CPU
)

// Recipe is how a layer is made of its tar. It is not to be changed.
type Recipe struct {
	Blob    toc.Digest // of the layer, compressed
	Size    int64      // of the layer
	DiffID  toc.Digest // of the tar
	Encoder Encoder
	Members []Member // in their order; there is at least one
	// Tail is what follows the last member, such as the zeros that fill up a block: up to 64 KiB.
	Tail []byte
}

// Member is a member of gzip (RFC 1952 section 2.2).
type Member struct {
	Header  []byte // as it is, with its time and name: 10 bytes to 64 KiB
	Size    int64  // how much of the tar is in it
	Flushed bool   // before it was closed
}

// TarSize returns how many bytes the tar has.
func (r *Recipe) TarSize() (n int64) {
	for _, m := range r.Members {
		n += m.Size
	}
	return n
}

// check reports what of a recipe cannot be.
func (r *Recipe) check() error {
	if err := r.Encoder.check(); err != nil {
		return err
	}
	if len(r.Members) == 0 || len(r.Members) > maxMembers || len(r.Tail) > maxTail {
		return malformed("%d members, and %d bytes behind them", len(r.Members), len(r.Tail))
	}
	around, tar := int64(len(r.Tail)), int64(0)
	for i, m := range r.Members {
		if !isHeader(m.Header) || m.Size < 0 || m.Size > maxTar-tar {
			return malformed("member %d of %d bytes, with a header of %d", i, m.Size, len(m.Header))
		}
		around, tar = around+int64(len(m.Header))+trailerSize, tar+m.Size
	}
	most := around + tar + tar/64 + int64(len(r.Members))*maxRound
	if r.Size < around+tar/maxShrunk || r.Size > most || !r.Blob.Known() || !r.DiffID.Known() {
		return malformed("no tar of %d bytes becomes a blob of %d", tar, r.Size)
	}
	return nil
}

func isHeader(p []byte) bool {
	return len(p) >= minHeader && len(p) <= maxHeader && p[0] == 0x1f && p[1] == 0x8b && p[2] == 8
}

func malformed(format string, a ...any) error {
	return fmt.Errorf("recipe: %w: "+format, append([]any{toc.ErrMalformed}, a...)...)
}

func none(format string, a ...any) error {
	return fmt.Errorf("recipe: %w: "+format, append([]any{ErrNone}, a...)...)
}
