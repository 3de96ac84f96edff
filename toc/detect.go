package toc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// digestKeys are the annotations of a layer that carry the SHA-256 of its table of
// contents, as it is before compression. The first is eStargz's; the others have
// been proposed.
var digestKeys = []string{
	"containerd.io/snapshot/stargz/toc.digest",
	"org.opencontainers.image.toc.digest",
	"org.opencontainers.image.estargz.toc.digest",
}

// AnnotatedDigest returns the digest of a layer's table that the manifest carries,
// or none. Values that differ are an error that wraps [ErrMalformed].
func AnnotatedDigest(annotations map[string]string) (d Digest, err error) {
	for _, key := range digestKeys {
		value := annotations[key]
		if value == "" {
			continue
		}
		next, err := ParseDigest(value)
		switch {
		case err != nil:
			return d, fmt.Errorf("annotation %s: %w: %w", key, ErrMalformed, err)
		case !next.Known():
			return d, fmt.Errorf("annotation %s: %w: %q is no SHA-256", key, ErrMalformed, shorten(value))
		case d.Known() && d != next:
			return d, fmt.Errorf("annotation %s: %w: %s, but another annotation says %s", key, ErrMalformed, next, d)
		}
		d = next
	}
	return d, nil
}

// Prefixes of what tells a format without a look at the layer.
const (
	chunkedStorage = "io.github.containers.zstd-chunked."
	chunkedStargz  = "io.containers.zstd-chunked."
	erofsType      = "application/vnd.erofs"
	erofsOCIType   = "application/vnd.oci.image.layer.v1.erofs"
	squashfsSuffix = ".squashfs"
)

// Announced returns the format that a layer's descriptor tells, or "".
func Announced(desc ocispec.Descriptor) Format {
	for key := range desc.Annotations {
		if strings.HasPrefix(key, chunkedStorage) || strings.HasPrefix(key, chunkedStargz) {
			return ZstdChunked
		}
	}
	mediaType, _, _ := strings.Cut(desc.MediaType, "+")
	switch {
	case strings.HasPrefix(mediaType, erofsType), strings.HasPrefix(mediaType, erofsOCIType):
		return EROFS
	case strings.HasSuffix(mediaType, squashfsSuffix):
		return Squashfs
	}
	for _, key := range digestKeys {
		if desc.Annotations[key] != "" && !strings.HasSuffix(desc.MediaType, "zstd") {
			return EStargz
		}
	}
	return ""
}

// headSize is how much of a layer's beginning tells its format.
const headSize = 2048

// Recognize returns the formats that a layer may be of, by its first bytes, the most
// telling first: to be opened as each until one does not say [ErrFormat].
func Recognize(r io.ReaderAt, size int64) ([]Format, error) {
	head := make([]byte, min(size, headSize))
	if n, err := r.ReadAt(head, 0); n < len(head) && err != nil {
		return nil, fmt.Errorf("layer: read at 0: %w", err)
	}
	at := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && bytes.Equal(head[off:off+len(magic)], []byte(magic))
	}
	switch {
	case at(0, "\x1f\x8b"):
		return []Format{EStargz, TarGzip}, nil
	case at(0, "\x28\xb5\x2f\xfd"), len(head) >= 4 && binary.LittleEndian.Uint32(head)&^0xf == 0x184d2a50: // a frame (RFC 8878), one to be skipped
		return []Format{ZstdChunked, TarZstd}, nil
	case at(0, "hsqs"):
		return []Format{Squashfs}, nil
	case at(257, "ustar"):
		return []Format{Tar}, nil
	case at(1024, "\xe2\xe1\xf5\xe0"):
		return []Format{EROFS}, nil
	}
	return []Format{Tar}, nil // of before ustar; what is none, the header's sum tells
}
