package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layoutDir is an OCI image layout (image-spec, image-layout.md) in a directory.
type layoutDir struct{ dir string }

// openLayout makes dir a layout to write to, if it is not one yet.
func openLayout(dir string) (*layoutDir, error) {
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir), 0o755); err != nil {
		return nil, fmt.Errorf("layout: %w", err)
	}
	l, err := findLayout(dir)
	if errors.Is(err, os.ErrNotExist) {
		l = &layoutDir{dir}
		err = l.replace(filepath.Join(dir, ocispec.ImageLayoutFile), layoutMarker())
	}
	return l, err
}

// findLayout returns the layout that dir is.
func findLayout(dir string) (*layoutDir, error) {
	marker := filepath.Join(dir, ocispec.ImageLayoutFile)
	p, err := os.ReadFile(marker)
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
	return &layoutDir{dir}, nil
}

// layoutMarker is the file that says that there is a layout.
func layoutMarker() []byte {
	return []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
}

// blobName is where a layout has a blob.
func blobName(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, string(d.Algorithm()), d.Encoded())
}

func (l *layoutDir) path(d digest.Digest) string { return filepath.Join(l.dir, blobName(d)) }

// has reports whether a blob is there, with the right bytes, and within the directory.
func (l *layoutDir) has(desc ocispec.Descriptor) bool {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return false
	}
	defer root.Close()
	f, err := root.OpenFile(blobName(desc.Digest), os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would wait for its writer
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular() && info.Size() == desc.Size && copyVerified(io.Discard, f, desc) == nil
}

// add reads a blob from r into the layout. It is in its place only if it has the
// digest and size of desc.
func (l *layoutDir) add(desc ocispec.Descriptor, r io.Reader) error {
	name := l.path(desc.Digest)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return replaceFile(name, func(w io.Writer) error { return copyVerified(w, r, desc) })
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

// containerdName is an annotation that names an image where containerd wrote the layout. A
// manifest that has it must not name itself by it.
const containerdName = "io.containerd.image.name"

// named returns an entry of a layout's index for a manifest, without a name if that is "".
func named(desc ocispec.Descriptor, name string) ocispec.Descriptor {
	desc.Annotations, desc.Data = maps.Clone(desc.Annotations), nil
	delete(desc.Annotations, ocispec.AnnotationRefName)
	delete(desc.Annotations, containerdName)
	if name != "" {
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	return desc
}

// list adds entries to the layout's index: each in place of what had its name, or without a
// name unless the manifest is listed already. All else that the index says stays.
func (l *layoutDir) list(entries []ocispec.Descriptor) error {
	path := filepath.Join(l.dir, ocispec.ImageIndexFile)
	p, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		p, err = newIndex(), nil
	}
	if err == nil {
		p, err = withEntries(p, entries)
	}
	if err != nil {
		return fmt.Errorf("layout %s: %w", path, err)
	}
	return l.replace(path, p)
}

// newIndex is an index that lists nothing.
func newIndex() []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q}`, ocispec.MediaTypeImageIndex)
}

// withEntries adds entries to a layout's index.
func withEntries(p []byte, entries []ocispec.Descriptor) ([]byte, error) {
	index := make(map[string]json.RawMessage)
	var manifests []json.RawMessage
	err := json.Unmarshal(p, &index)
	if listed, ok := index["manifests"]; ok && err == nil {
		err = json.Unmarshal(listed, &manifests)
	}
	if err == nil && index == nil {
		err = errors.New("it is null")
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		manifests = withEntry(manifests, e)
	}
	if index["manifests"], err = json.Marshal(manifests); err != nil {
		return nil, err
	}
	return json.MarshalIndent(index, "", "  ")
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

func (l *layoutDir) replace(path string, p []byte) error {
	return replaceFile(path, func(w io.Writer) error { _, err := w.Write(p); return err })
}
