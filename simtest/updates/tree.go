package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/images"
)

// tree is a tar that is written, of files that are all of one time and belong to root.
type tree struct {
	*tar.Writer
	at time.Time
}

func writeTar(to string, v version, write func(*tree) error) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	w := &tree{tar.NewWriter(f), time.Unix(int64(v.epoch), 0)}
	return errors.Join(write(w), w.Close(), f.Close())
}

// file adds a file, of which write writes size bytes.
func (t *tree) file(name string, mode int64, size int64, write func(io.Writer) error) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: size, ModTime: t.at}); err != nil {
		return err
	}
	return write(t)
}

// add adds a directory and all in it.
func (t *tree) add(dir, as string) error {
	return filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var link string
		if e.Type() == fs.ModeSymlink {
			if link, err = os.Readlink(name); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		*h = tar.Header{Typeflag: h.Typeflag, Name: path.Join(as, below), Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, ModTime: t.at}
		if err := t.WriteHeader(h); err != nil || !e.Type().IsRegular() {
			return err
		}
		p, err := os.ReadFile(name)
		if err == nil {
			_, err = t.Write(p)
		}
		return err
	})
}

// contents are the files of an image, by what they have.
type contents map[string][sha256.Size]byte

// contentsOf returns those of layers over each other, none of which removes anything.
func contentsOf(layers []string) (contents, error) {
	all := make(contents)
	for _, l := range layers {
		err := images.EachEntry(l, func(h *tar.Header, content io.Reader) error {
			name := path.Clean(h.Name)
			delete(all, name)
			switch h.Typeflag {
			case tar.TypeLink:
				all[name] = all[path.Clean(h.Linkname)]
			case tar.TypeReg:
				sum := sha256.New()
				if _, err := io.Copy(sum, content); err != nil {
					return err
				}
				all[name] = [sha256.Size]byte(sum.Sum(nil))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

const readers = 16 // files that are read at a time

// readAll reads all files below a directory, and compares them.
func (c contents) readAll(root string) error {
	var g errgroup.Group
	g.SetLimit(readers)
	n := 0
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		below, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		n++
		g.Go(func() error { return c.compare(name, below) })
		return nil
	})
	if err := errors.Join(err, g.Wait()); err != nil {
		return err
	}
	if n != len(c) {
		return fmt.Errorf("%d files were read, want %d", n, len(c))
	}
	return nil
}

func (c contents) compare(file, name string) error {
	want, ok := c[name]
	if !ok {
		return fmt.Errorf("%s is in no layer", name)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), want[:]) {
		return fmt.Errorf("%s is not what the layer has", name)
	}
	return nil
}
