package toc

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Errors of layers that are not what they should be.
var (
	// ErrMalformed says that a layer, or a table, makes no sense.
	ErrMalformed = errors.New("malformed")
	// ErrLimit says that a layer, or a table, is larger than what is read of any.
	ErrLimit = errors.New("over the limit")
	// ErrFormat says that a layer is not of the format that it was opened as.
	ErrFormat = errors.New("not of this format")
	// ErrUnsupported says that a layer is of this format, and of a kind of it that is
	// not read in user space.
	ErrUnsupported = errors.New("not supported")
)

// Limits of what is read of a layer.
const (
	MaxEntries   = 1 << 22   // of a layer, or of an image's tree
	MaxExtents   = 1 << 23   // of a layer
	MaxName      = 4096      // bytes of a name or a link's target: PATH_MAX
	MaxDepth     = 1024      // elements of a name
	MaxText      = 1 << 30   // bytes of all names and targets of a layer
	MaxXattrs    = 64 << 10  // bytes of one entry's extended attributes: XATTR_SIZE_MAX
	MaxFileSize  = 1 << 43   // bytes of one file: 8 TiB
	MaxTOCSize   = 512 << 20 // bytes of a table as JSON
	MaxPackedTOC = 128 << 20 // bytes of a table as it is compressed in a layer
)

// Type says what an entry is.
type Type uint8

// The types of entries.
const (
	Directory Type = iota + 1
	Regular
	Symlink
	Hardlink // another name for what Entry.Link names
	CharDevice
	BlockDevice
	FIFO
)

var typeNames = [...]string{Directory: "dir", Regular: "reg", Symlink: "symlink", Hardlink: "hardlink", CharDevice: "char", BlockDevice: "block", FIFO: "fifo"}

// String returns the type's name in a JSON table, as in eStargz.
func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", t)
}

// ParseType is the inverse of [Type.String].
func ParseType(s string) (Type, bool) {
	for t, name := range typeNames {
		if name != "" && name == s {
			return Type(t), true
		}
	}
	return 0, false
}

// Digest is the SHA-256 of a piece of content; its zero is none.
type Digest [sha256.Size]byte

// ParseDigest returns the digest that s names: "sha256:" and 64 digits. The empty
// string, and a digest by another algorithm, which is not checked, give none.
func ParseDigest(s string) (d Digest, err error) {
	parsed := digest.Digest(s)
	if s == "" {
		return d, nil
	}
	if err := parsed.Validate(); errors.Is(err, digest.ErrDigestUnsupported) {
		return d, nil
	} else if err != nil {
		return d, fmt.Errorf("digest %q: %w", s, err)
	}
	if parsed.Algorithm() != digest.SHA256 {
		return d, nil
	}
	_, err = hex.Decode(d[:], []byte(parsed.Encoded()))
	return d, err
}

// Known reports whether d is a digest.
func (d Digest) Known() bool { return d != Digest{} }

// OCI returns d as image manifests write it, or "" for none.
func (d Digest) OCI() digest.Digest {
	if !d.Known() {
		return ""
	}
	return digest.NewDigestFromBytes(digest.SHA256, d[:])
}

// String returns d as image manifests write it.
func (d Digest) String() string { return string(d.OCI()) }

// Extent is a run of a file's content inside a layer.
type Extent struct {
	// Offset and Size say which part of the file it is, in bytes. What no extent of
	// a file covers is a hole, and reads as zeros.
	Offset, Size int64
	// Start and End are the bytes of the layer that it is read from, as far as the
	// format can tell: End may lie behind the content's, never before.
	Start, End int64
	// Inner is where the content begins in what inflates from Start. In a format
	// that is inflated from its beginning Start is 0 and Inner an offset in the tar.
	Inner int64
	// Digest is that of the content, if it is known.
	Digest Digest
}

// Entry is one name in a layer.
type Entry struct {
	Name     string
	Type     Type
	Mode     uint32 // permissions, set-user-ID, set-group-ID and sticky: 07777
	UID, GID uint32
	Size     int64 // bytes of a regular file's content
	ModTime  time.Time
	Link     string // a symlink's target as it is; the name a hardlink stands for
	Major    uint32 // of a device
	Minor    uint32
	Xattrs   map[string]string // not to be changed
	Extents  []Extent          // of a regular file, in order; not to be changed
	Digest   Digest            // of all of a regular file's content, if it is known
}

// FileMode returns the entry's type and mode.
func (e *Entry) FileMode() fs.FileMode {
	m := fs.FileMode(e.Mode & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if e.Mode&bit != 0 {
			m |= flag
		}
	}
	switch e.Type {
	case Directory:
		m |= fs.ModeDir
	case Symlink:
		m |= fs.ModeSymlink
	case CharDevice:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case BlockDevice:
		m |= fs.ModeDevice
	case FIFO:
		m |= fs.ModeNamedPipe
	}
	return m
}

// Base returns the last element of the entry's name; the root's is ".".
func (e *Entry) Base() string {
	if e.Name == "" {
		return "."
	}
	return e.Name[strings.LastIndexByte(e.Name, '/')+1:]
}

// parent returns the name of the directory that holds name.
func parent(name string) string {
	return name[:max(0, strings.LastIndexByte(name, '/'))]
}
