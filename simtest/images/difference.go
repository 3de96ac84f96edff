package images

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// state is what a tar says of a name.
type state struct {
	header tar.Header
	sum    [sha256.Size]byte
}

// Difference writes what is in one tar and not the same in another, with the directories
// that it is in. Nothing may be missing in it.
func Difference(below, system, to string) error {
	before, after := make(map[string]state), make(map[string]state)
	if below != "" {
		if err := states(below, before); err != nil {
			return err
		}
	}
	if err := states(system, after); err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for name, is := range after {
		if was, ok := before[name]; !ok || !same(was, is) {
			for ; name != "."; name = path.Dir(name) {
				wanted[name] = true
			}
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			return fmt.Errorf("%s of the layer below is not there", name)
		}
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	err = EachEntry(system, func(h *tar.Header, content io.Reader) error {
		if !wanted[path.Clean(h.Name)] {
			return nil
		}
		if err := w.WriteHeader(plain(h)); err != nil {
			return err
		}
		_, err := io.Copy(w, content)
		return err
	})
	return errors.Join(err, w.Close(), out.Close())
}

func same(a, b state) bool {
	x, y := a.header, b.header
	return a.sum == b.sum && x.Typeflag == y.Typeflag && x.Linkname == y.Linkname && x.Mode == y.Mode &&
		x.Uid == y.Uid && x.Gid == y.Gid && (x.Typeflag == tar.TypeDir || x.ModTime.Equal(y.ModTime))
}

// plain is a header as any program can read it.
func plain(h *tar.Header) *tar.Header {
	p := &tar.Header{
		Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor, Format: tar.FormatPAX, PAXRecords: make(map[string]string),
	}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			p.PAXRecords[k] = v
		}
	}
	return p
}

// states reads all that a tar has.
func states(name string, all map[string]state) error {
	return EachEntry(name, func(h *tar.Header, content io.Reader) error {
		sum := sha256.New()
		if _, err := io.Copy(sum, content); err != nil {
			return err
		}
		s := state{header: *h}
		sum.Sum(s.sum[:0])
		all[path.Clean(h.Name)] = s
		return nil
	})
}

// EachEntry reads a tar, but for its root.
func EachEntry(name string, do func(h *tar.Header, content io.Reader) error) error {
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
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if path.Clean(h.Name) == "." || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := do(h, r); err != nil {
			return fmt.Errorf("%s: %s: %w", name, h.Name, err)
		}
	}
}
