package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout is an OCI image layout (image-spec, image-layout.md) that is written to.
type layout struct{ dir string }

// openLayout makes dir a layout, if it is not one yet.
func openLayout(dir string) (*layout, error) {
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir), 0o755); err != nil {
		return nil, fmt.Errorf("layout: %w", err)
	}
	l := &layout{dir}
	marker := filepath.Join(dir, ocispec.ImageLayoutFile)
	p, err := os.ReadFile(marker)
	if errors.Is(err, os.ErrNotExist) {
		p, _ = json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
		return l, l.replace(marker, p)
	}
	var found ocispec.ImageLayout
	if err == nil {
		err = json.Unmarshal(p, &found)
	}
	if err != nil {
		return nil, fmt.Errorf("layout %s: %w", marker, err)
	}
	if found.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("layout %s: version %q is not %s", marker, found.Version, ocispec.ImageLayoutVersion)
	}
	return l, nil
}

func (l *layout) path(d digest.Digest) string {
	return filepath.Join(l.dir, ocispec.ImageBlobsDir, string(d.Algorithm()), d.Encoded())
}

// has reports whether a blob is there in full; blobs come into their place only
// when they have been verified.
func (l *layout) has(desc ocispec.Descriptor) bool {
	info, err := os.Stat(l.path(desc.Digest))
	return err == nil && info.Mode().IsRegular() && info.Size() == desc.Size
}

// add reads a blob from r into the layout. It is in its place only if it has the
// digest and size of desc.
func (l *layout) add(desc ocispec.Descriptor, r io.Reader) error {
	path := l.path(desc.Digest)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return replaceFile(path, func(w io.Writer) error { return copyVerified(w, r, desc) })
}

// copyVerified copies exactly what desc describes, or fails.
func copyVerified(w io.Writer, r io.Reader, desc ocispec.Descriptor) error {
	hash := desc.Digest.Algorithm().Hash()
	n, err := io.CopyBuffer(io.MultiWriter(w, hash), io.LimitReader(r, desc.Size+1), make([]byte, 1<<20))
	if err != nil {
		return err
	}
	if got := digest.NewDigest(desc.Digest.Algorithm(), hash); n != desc.Size || got != desc.Digest {
		return fmt.Errorf("blob %s of %d bytes: %d bytes with digest %s arrived", desc.Digest, desc.Size, n, got)
	}
	return nil
}

// named returns an entry of a layout's index for a manifest, without a name if that is "".
func named(desc ocispec.Descriptor, name string) ocispec.Descriptor {
	desc.Annotations = maps.Clone(desc.Annotations)
	delete(desc.Annotations, ocispec.AnnotationRefName)
	if name != "" {
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	return desc
}

// list adds entries to the layout's index: each in place of what had its name, or without a
// name unless the manifest is listed already. All else that the index says stays.
func (l *layout) list(entries []ocispec.Descriptor) error {
	path := filepath.Join(l.dir, ocispec.ImageIndexFile)
	index := make(map[string]json.RawMessage)
	var manifests []json.RawMessage
	p, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		p, err = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q}`, ocispec.MediaTypeImageIndex), nil
	}
	if err == nil {
		err = json.Unmarshal(p, &index)
	}
	if listed, ok := index["manifests"]; ok && err == nil {
		err = json.Unmarshal(listed, &manifests)
	}
	if err == nil && index == nil {
		err = errors.New("it is null")
	}
	if err != nil {
		return fmt.Errorf("layout %s: %w", path, err)
	}
	for _, e := range entries {
		manifests = withEntry(manifests, e)
	}
	if index["manifests"], err = json.Marshal(manifests); err != nil {
		return err
	}
	if p, err = json.MarshalIndent(index, "", "  "); err != nil {
		return err
	}
	return l.replace(path, p)
}

// withEntry adds an entry to the manifests of a layout's index.
func withEntry(manifests []json.RawMessage, e ocispec.Descriptor) []json.RawMessage {
	name := e.Annotations[ocispec.AnnotationRefName]
	same := func(raw json.RawMessage) bool {
		var d ocispec.Descriptor
		_ = json.Unmarshal(raw, &d) // what is none stays
		return name == "" && d.Digest == e.Digest || name != "" && d.Annotations[ocispec.AnnotationRefName] == name
	}
	if name == "" && slices.ContainsFunc(manifests, same) {
		return manifests
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return manifests // a descriptor is always encoded
	}
	return append(slices.DeleteFunc(manifests, same), raw)
}

// replaceFile makes path hold what write writes, or leaves it as it was.
func replaceFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

func (l *layout) replace(path string, p []byte) error {
	return replaceFile(path, func(w io.Writer) error { _, err := w.Write(p); return err })
}
