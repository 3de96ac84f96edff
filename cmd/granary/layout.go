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
	"regexp"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layoutDir is an OCI image layout (image-spec, image-layout.md) in a directory.
type layoutDir struct {
	dir    string
	locked *os.File // the directory, of one that is written to
}

// openLayout makes dir a layout to write to, if it is not one yet. It belongs to this process
// until it is closed.
func openLayout(dir string) (*layoutDir, error) {
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir), 0o755); err != nil {
		return nil, fmt.Errorf("layout: %w", err)
	}
	locked, err := os.Open(dir)
	if err == nil {
		err = lock(locked)
	}
	if err != nil {
		locked.Close()
		return nil, fmt.Errorf("layout %w", err)
	}
	l, err := findLayout(dir)
	if errors.Is(err, os.ErrNotExist) {
		l = &layoutDir{dir: dir}
		err = l.replace(ocispec.ImageLayoutFile, layoutMarker())
	}
	if err != nil {
		locked.Close()
		return nil, err
	}
	l.locked = locked
	return l, nil
}

// close leaves the layout to others. Once all that was asked for is there, what was begun before
// and not ended is not kept.
func (l *layoutDir) close(complete bool) {
	if l == nil {
		return
	}
	defer l.locked.Close()
	blobs := filepath.Join(l.dir, ocispec.ImageBlobsDir)
	algorithms, _ := os.ReadDir(blobs)
	for _, a := range algorithms {
		files, _ := os.ReadDir(filepath.Join(blobs, a.Name()))
		for _, f := range files {
			if complete && partOfBlob.MatchString(f.Name()) {
				os.Remove(filepath.Join(blobs, a.Name(), f.Name()))
			}
		}
	}
}

// partName is what a file of a layout is called until it is complete. A layout may have
// files that the specification does not know.
func partName(name string) string { return "." + name + ".part" }

var partOfBlob = regexp.MustCompile(`^\.[0-9a-f]+\.part$`)

// findLayout returns the layout that dir is, to be read.
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
	return &layoutDir{dir: dir}, nil
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

// add fetches a blob into the layout, and of one of which a part is there the rest. It is in its
// place only if it has the digest and size of desc.
func (l *layoutDir) add(desc ocispec.Descriptor, from fetcher) error {
	name := blobName(desc.Digest)
	if err := os.MkdirAll(filepath.Dir(l.path(desc.Digest)), 0o755); err != nil {
		return err
	}
	return l.write(name, func(w *part) error { return w.blob(desc, from) })
}

// write makes a file of the layout what do writes, or leaves it as it was.
func (l *layoutDir) write(name string, do func(*part) error) error {
	dir, base := path.Split(name)
	w, err := openPart(filepath.Join(l.dir, name), filepath.Join(l.dir, dir, partName(base)))
	if err != nil {
		return err
	}
	return w.finish(do(w))
}

func (l *layoutDir) replace(name string, p []byte) error {
	return l.write(name, func(w *part) error { _, err := w.Write(p); return err })
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
	return l.replace(ocispec.ImageIndexFile, p)
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
