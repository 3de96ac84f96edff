package toc

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
)

// ErrDisagrees says that a layer's own table of contents does not describe what the
// layer holds.
var ErrDisagrees = errors.New("the table of contents disagrees with the layer")

// private are files that formats put into a layer for themselves.
var private = map[string]bool{"stargz.index.json": true, ".prefetch.landmark": true, ".no.prefetch.landmark": true}

// Compare reports in what a layer's own table differs from that which was made by
// reading all of the layer: names, types, attributes and contents. It reads the
// files that table has in several extents. The error wraps [ErrDisagrees] if they
// differ.
func Compare(l *Layer, read *TOC) error {
	i := 0
	for e := range read.All() {
		if private[e.Name] {
			continue
		}
		if i == l.Len() {
			return fmt.Errorf("%w: it lacks %q", ErrDisagrees, shorten(e.Name))
		}
		listed := l.At(i)
		i++
		if listed.Name != e.Name {
			return fmt.Errorf("%w: it has %q in place of %q", ErrDisagrees, shorten(listed.Name), shorten(e.Name))
		}
		if err := compare(l, &listed, &e); err != nil {
			return err
		}
	}
	if i < l.Len() {
		return fmt.Errorf("%w: it has %q, which is not there", ErrDisagrees, shorten(l.At(i).Name))
	}
	return nil
}

func compare(l *Layer, listed, e *Entry) error {
	differs := func(what string, got, want any) error {
		return fmt.Errorf("%w: %q: %s: %v is listed, %v is there", ErrDisagrees, shorten(e.Name), what, got, want)
	}
	switch {
	case listed.Type != e.Type:
		return differs("type", listed.Type, e.Type)
	case listed.Mode != e.Mode:
		return differs("mode", fmt.Sprintf("%04o", listed.Mode), fmt.Sprintf("%04o", e.Mode))
	case listed.UID != e.UID || listed.GID != e.GID:
		return differs("owner", fmt.Sprint(listed.UID, ":", listed.GID), fmt.Sprint(e.UID, ":", e.GID))
	case listed.Size != e.Size:
		return differs("size", listed.Size, e.Size)
	case listed.Link != e.Link:
		return differs("target", listed.Link, e.Link)
	case listed.Major != e.Major || listed.Minor != e.Minor:
		return differs("device", fmt.Sprint(listed.Major, ":", listed.Minor), fmt.Sprint(e.Major, ":", e.Minor))
	case !listed.ModTime.IsZero() && listed.ModTime.Unix() != e.ModTime.Unix(): // eStargz has seconds
		return differs("time", listed.ModTime, e.ModTime)
	case !maps.Equal(listed.Xattrs, e.Xattrs):
		return differs("extended attributes", listed.Xattrs, e.Xattrs)
	}
	if e.Type != Regular || e.Size == 0 {
		return nil
	}
	got, err := contentDigest(l, listed)
	if err != nil {
		return err
	}
	if got.Known() && e.Digest.Known() && got != e.Digest {
		return differs("content", got, e.Digest)
	}
	if listed.Digest.Known() && e.Digest.Known() && listed.Digest != e.Digest {
		return differs("digest", listed.Digest, e.Digest)
	}
	return nil
}

// contentDigest returns the digest of what a file's extents give.
func contentDigest(l *Layer, e *Entry) (d Digest, err error) {
	if len(e.Extents) == 1 && e.Extents[0].Size == e.Size {
		return e.Extents[0].Digest, nil
	}
	sum := sha256.New()
	_, err = io.Copy(sum, io.NewSectionReader(Open(l, e, nil), 0, e.Size))
	var corrupt *CorruptError
	if errors.As(err, &corrupt) || errors.Is(err, ErrMalformed) || errors.Is(err, io.ErrUnexpectedEOF) {
		return d, fmt.Errorf("%w: %w", ErrDisagrees, err)
	}
	return Digest(sum.Sum(nil)), err
}
