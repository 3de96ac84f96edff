package treetest

import (
	"archive/tar"
	"bytes"
)

// Tar returns a tar of so many files: file says of what name each is, and what it holds.
func Tar(files int, file func(i int) (name string, content []byte)) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range files {
		name, p := file(i)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(p))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(p); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
