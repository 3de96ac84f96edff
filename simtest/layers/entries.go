package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"time"
)

// entry is one entry of a tar that is made, or, with raw, entries that another
// program has made.
type entry struct {
	tar.Header
	content io.Reader
	raw     []byte
}

// then is when things in made layers were last changed. Only some formats keep its
// nanoseconds.
var then = time.Unix(1760000000, 123456789)

func made(typ byte, name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: then, Format: tar.FormatPAX}}
}

func dir(name string) entry { return made(tar.TypeDir, name+"/", 0o755) }

func file(name, content string) entry {
	return big(name, int64(len(content)), bytes.NewReader([]byte(content)))
}

func big(name string, size int64, content io.Reader) entry {
	e := made(tar.TypeReg, name, 0o644)
	e.Size, e.content = size, content
	return e
}

func symlink(name, to string) entry {
	e := made(tar.TypeSymlink, name, 0o777)
	e.Linkname = to
	return e
}

func hardlink(name, to string) entry {
	e := made(tar.TypeLink, name, 0o644)
	e.Linkname = to
	return e
}

func device(typ byte, name string, major, minor int64) entry {
	e := made(typ, name, 0o600)
	e.Devmajor, e.Devminor = major, minor
	return e
}

func (e entry) mode(mode int64) entry {
	e.Mode = mode
	return e
}

func (e entry) owner(uid, gid int) entry {
	e.Uid, e.Gid = uid, gid
	return e
}

func (e entry) xattr(name, value string) entry {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

// gnu makes an entry with the headers of GNU tar, which have seconds.
func (e entry) gnu() entry {
	e.Format, e.ModTime = tar.FormatGNU, e.ModTime.Truncate(time.Second)
	return e
}

// writeTar writes a tar.
func writeTar(w io.Writer, entries ...entry) error {
	t := tar.NewWriter(w)
	for _, e := range entries {
		if err := writeEntry(t, w, e); err != nil {
			return fmt.Errorf("tar: %q: %w", e.Name, err)
		}
	}
	return t.Close()
}

func writeEntry(t *tar.Writer, w io.Writer, e entry) error {
	if e.raw != nil {
		if err := t.Flush(); err != nil {
			return err
		}
		_, err := w.Write(e.raw)
		return err
	}
	if err := t.WriteHeader(&e.Header); err != nil || e.content == nil {
		return err
	}
	if again, ok := e.content.(io.Seeker); ok { // it may have been written before
		if _, err := again.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	_, err := io.Copy(t, e.content)
	return err
}
