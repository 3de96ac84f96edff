package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// found is a file as it is found on a disk.
type found struct {
	Name     string
	Type     string
	Mode     string
	UID, GID uint32
	Size     int64
	ModTime  time.Time
	Links    int
	Link     string
	Major    uint32
	Minor    uint32
	Xattrs   map[string]string
	// First is the first of the file's names, in order: the same for all of them.
	First  string
	digest string // of a regular file's content
}

// unpack unpacks the images' tree with umoci, and returns what that has made. The image is
// that of plain tars without sparse files, of which umoci does not know all kinds; what is
// in them is the same.
func (l *lab) unpack(ctx context.Context) (map[string]*found, error) {
	img, err := l.build(format{name: "reference", mediaType: tarType, write: copyTar})
	if err != nil {
		return nil, err
	}
	return l.unpackImage(ctx, img)
}

// unpackImage unpacks an image with umoci, and returns what that has made, by name, the
// root left out. It is to be called for one image at a time.
func (l *lab) unpackImage(ctx context.Context, img *image) (map[string]*found, error) {
	named := img.manifest
	named.Annotations = map[string]string{ocispec.AnnotationRefName: "v1"}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{named}}
	p, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.WriteFile(filepath.Join(l.blobs(), "index.json"), p, 0o644),
		os.WriteFile(filepath.Join(l.blobs(), "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	if err != nil {
		return nil, err
	}
	bundle := filepath.Join(l.dir, "bundle-"+img.manifest.Digest.Encoded())
	if out, err := exec.CommandContext(ctx, "umoci", "unpack", "--image", l.blobs()+":v1", bundle).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("umoci: %w\n%s", err, out)
	}
	return walk(filepath.Join(bundle, "rootfs"), func(string) bool { return true })
}

// walk looks at all that is below a directory, and reads the files that pass.
func walk(root string, read func(name string) bool) (map[string]*found, error) {
	all := make(map[string]*found)
	first := make(map[[2]uint64]*found)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		f, err := look(path, &st)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		f.Name = path[len(root):]
		f.First = f.Name
		if other := first[[2]uint64{st.Dev, st.Ino}]; other != nil {
			f.First, f.digest = other.First, other.digest
		} else if first[[2]uint64{st.Dev, st.Ino}] = f; f.Type == "reg" && read(f.Name) {
			f.digest, err = hashFile(path)
		}
		all[f.Name] = f
		return err
	})
	return all, err
}

var kinds = map[uint32]string{
	unix.S_IFDIR: "dir", unix.S_IFREG: "reg", unix.S_IFLNK: "symlink", unix.S_IFCHR: "char", unix.S_IFBLK: "block", unix.S_IFIFO: "fifo",
}

func look(path string, st *unix.Stat_t) (f *found, err error) {
	f = &found{
		Type: kinds[st.Mode&unix.S_IFMT], Mode: fmt.Sprintf("%04o", st.Mode&0o7777), UID: st.Uid, GID: st.Gid,
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec).UTC(), Links: int(st.Nlink),
	}
	switch f.Type {
	case "dir":
		f.Links = 1 // what a directory's count means is each file system's own
	case "reg":
		f.Size = st.Size
	case "symlink":
		f.Link, err = os.Readlink(path)
	case "char", "block":
		f.Major, f.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if err != nil {
		return nil, err
	}
	f.Xattrs, err = xattrs(path)
	return f, err
}

func xattrs(path string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil || n == 0 {
		return nil, err
	}
	all := make(map[string]string)
	for _, name := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		all[name] = string(value[:n])
	}
	return all, nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}
