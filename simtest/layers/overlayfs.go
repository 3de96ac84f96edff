package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// fileSystem writes a layer as the image of a file system, with the program that
// makes one of a directory.
func (l *lab) fileSystem(from string, to io.Writer, program func(dir, name string) *exec.Cmd) (written, error) {
	dir, err := l.unpacked(from)
	if err != nil {
		return written{}, err
	}
	image, err := os.CreateTemp(l.dir, "image-*")
	if err != nil {
		return written{}, err
	}
	defer image.Close()
	name := image.Name()
	defer os.Remove(name)
	if out, err := program(dir, name).CombinedOutput(); err != nil {
		return written{}, fmt.Errorf("%w\n%s", err, out)
	}
	return written{}, through(name, to, func(w io.Writer) (io.WriteCloser, error) { return keepOpen{w}, nil })
}

// unpacked returns a directory that has what a layer has, with whiteouts as overlayfs
// knows them. GNU tar unpacks it.
func (l *lab) unpacked(from string) (string, error) {
	l.unpacking.Lock()
	defer l.unpacking.Unlock()
	dir := filepath.Join(l.dir, "unpacked-"+strings.TrimSuffix(filepath.Base(from), ".tar"))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore", "-C", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return "", err
	}
	err = convert(from, l.base(), in)
	if err := errors.Join(err, in.Close(), cmd.Wait()); err != nil {
		return "", fmt.Errorf("unpack %s: %w\n%s", from, err, said.Bytes())
	}
	return dir, nil
}

// marks of OCI's whiteouts.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// convert writes a layer with whiteouts of overlayfs. A file that is a further name of
// one in the base layer is there with it, as overlayfs copies it up.
func convert(from, below string, to io.Writer) error {
	names, opaques := make(map[string]bool), make(map[string]bool)
	err := eachEntry(from, func(h *tar.Header, _ io.Reader) error {
		dir, base := path.Split(path.Clean(h.Name))
		names[path.Clean(h.Name)] = true
		if base == opaque {
			opaques[path.Clean(dir)] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	w := tar.NewWriter(to)
	err = eachEntry(from, func(h *tar.Header, content io.Reader) error {
		if h.Typeflag == tar.TypeLink {
			if err := copyUp(w, below, path.Clean(h.Linkname), names); err != nil {
				return err
			}
		}
		dir, base := path.Split(path.Clean(h.Name))
		switch {
		case base == opaque:
			return nil
		case strings.HasPrefix(base, whiteout):
			h = &tar.Header{Typeflag: tar.TypeChar, Name: dir + base[len(whiteout):]}
		case opaques[path.Clean(h.Name)]:
			h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}
		}
		return writeLike(w, h, content)
	})
	return errors.Join(err, w.Close())
}

// writeLike writes an entry that was read. Files that were sparse are no longer.
func writeLike(w *tar.Writer, h *tar.Header, content io.Reader) error {
	like := tar.Header{
		Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor, Format: tar.FormatPAX, PAXRecords: make(map[string]string),
	}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			like.PAXRecords[k] = v
		}
	}
	if h.Typeflag == tar.TypeGNUSparse {
		like.Typeflag = tar.TypeReg
	}
	if err := w.WriteHeader(&like); err != nil {
		return err
	}
	_, err := io.Copy(w, content)
	return err
}

// copyUp writes what the base layer has of a name, and of the directories above it,
// unless it is one of names.
func copyUp(w *tar.Writer, below, name string, names map[string]bool) error {
	if name == "." || names[name] {
		return nil
	}
	if err := copyUp(w, below, path.Dir(name), names); err != nil {
		return err
	}
	names[name] = true
	return eachEntry(below, func(h *tar.Header, content io.Reader) error {
		if path.Clean(h.Name) != name {
			return nil
		}
		return writeLike(w, h, content)
	})
}

// eachEntry reads a tar.
func eachEntry(name string, do func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = do(h, r)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}
