package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
)

// stargzWriter writes eStargz (stargz-snapshotter, docs/estargz.md) whose table says
// whatever it is told to.
type stargzWriter struct {
	b bytes.Buffer
}

// member adds a member, and returns where it begins.
func (w *stargzWriter) member(write func(io.Writer) error) (at int, err error) {
	at = w.b.Len()
	z, err := gzip.NewWriterLevel(&w.b, gzip.BestSpeed)
	if err != nil {
		return at, err
	}
	if err := write(z); err != nil {
		return at, err
	}
	return at, z.Close()
}

// file adds a file of a tar, and returns where its content's member begins.
func (w *stargzWriter) file(name, content string) (at int, err error) {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: then, Format: tar.FormatPAX}); err != nil {
		return 0, err
	}
	if _, err := w.member(func(z io.Writer) error { _, err := z.Write(b.Bytes()); return err }); err != nil {
		return 0, err
	}
	padded := content + string(make([]byte, -len(content)&511))
	return w.member(func(z io.Writer) error { _, err := io.WriteString(z, padded); return err })
}

// finish adds the table and the footer.
func (w *stargzWriter) finish(size int64, table io.Reader) ([]byte, error) {
	at, err := w.member(func(z io.Writer) error {
		t := tar.NewWriter(z)
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Mode: 0o444, Size: size}); err != nil {
			return err
		}
		if _, err := io.Copy(t, table); err != nil {
			return err
		}
		return t.Close()
	})
	if err != nil {
		return nil, err
	}
	w.b.WriteString(stargzFooter(at))
	return w.b.Bytes(), nil
}

// stargzFooter is the end of a layer whose table is in the member at an offset.
func stargzFooter(at int) string {
	return fmt.Sprintf("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x00%016xSTARGZ\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00", at)
}
