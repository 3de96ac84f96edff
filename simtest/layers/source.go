package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Files that are read apart from the rest.
const (
	smallFile = "opt/small" // 4 KiB
	largeFile = "opt/large" // 40 MiB, or 16
	smallSize = 4 << 10
)

// large returns the size of the large file.
func (l *lab) large() int {
	if l.small {
		return 16 << 20
	}
	return 40 << 20
}

// source is a layer as a tar, the lowest first. Where sparse is not empty it is the
// same tar with files that are sparse in it, which not every writer can read.
type source struct{ tar, sparse string }

// makeSources makes the layers that all images are made of: a Debian, what is changed
// in it, and files of all kinds.
func (l *lab) makeSources() ([]source, error) {
	if _, err := os.Stat(debian()); err != nil {
		return nil, &missingError{"debian.tar in $GRANARY_TOOLS"}
	}
	if l.small {
		if err := writeFile(l.base(), withoutPerl); err != nil {
			return nil, err
		}
	}
	changes := filepath.Join(l.dir, "changes.tar")
	if err := writeFile(changes, func(w io.Writer) error { return writeTar(w, changed()...) }); err != nil {
		return nil, err
	}
	own, sparse := filepath.Join(l.dir, "own.tar"), filepath.Join(l.dir, "own-sparse.tar")
	if err := l.writeOwn(own, false); err != nil {
		return nil, err
	}
	if err := l.writeOwn(sparse, true); err != nil {
		return nil, err
	}
	return []source{{l.base(), ""}, {changes, ""}, {own, sparse}}, nil
}

// base is the lowest layer as a tar.
func (l *lab) base() string {
	if l.small {
		return filepath.Join(l.dir, "base.tar")
	}
	return debian()
}

// withoutPerl writes Debian without what is half of it, and many files of one kind.
func withoutPerl(to io.Writer) error {
	w := tar.NewWriter(to)
	err := eachEntry(debian(), func(h *tar.Header, content io.Reader) error {
		if strings.Contains(h.Name, "perl") || strings.Contains(h.Name, "/gconv/") {
			return nil
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(w, content)
		return err
	})
	return errors.Join(err, w.Close())
}

// debian is a minimal Debian, by mmdebstrap.
func debian() string { return filepath.Join(os.Getenv("GRANARY_TOOLS"), "debian.tar") }

// changed are changes to Debian, each kind that there is.
func changed() []entry {
	return []entry{
		dir("etc"),
		file("etc/issue", "This is another system.\n").owner(0, 42).mode(0o640),
		file("etc/.wh.motd", ""),
		file("usr/share/.wh.base-files", ""),
		dir("etc/pam.d").mode(0o2750),
		file("etc/pam.d/.wh..wh..opq", ""),
		file("etc/pam.d/other", "auth required pam_deny.so\n"),
		file("etc/security", "This was a directory.\n"),
		symlink("etc/logrotate.d", "../opt"),
		dir("etc/issue.net"),
		file("etc/issue.net/was", "This was a file.\n"),
		dir("usr"), dir("usr/share"),
		dir("opt").owner(1000, 1000),
		hardlink("opt/license", "usr/share/common-licenses/GPL-3"),
	}
}

// capability is "cap_net_raw=ep" as the attribute has it (kernel, capability.h:
// struct vfs_cap_data, version 2).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// own are files of all kinds, but for those that are sparse.
func own(large, small []byte) []entry {
	const element = "a-long-name-of-a-directory"
	deep := "opt/" + strings.Repeat(element+"/", 9)
	zeros := bytes.Join([][]byte{small, make([]byte, 1<<20), small}, nil)
	entries := []entry{
		dir("etc"), file("etc/motd", "Here again.\n"),
		dir("usr"), dir("usr/share"), dir("usr/share/base-files"), file("usr/share/base-files/new", "new\n"),
		dir("opt").mode(0o1777),
		big(largeFile, int64(len(large)), bytes.NewReader(large)),
		big(smallFile, smallSize, bytes.NewReader(small)),
		big("opt/zeros", int64(len(zeros)), bytes.NewReader(zeros)),
		file("opt/empty", ""),
		file("opt/first", "one file of three names\n"), hardlink("opt/second", "opt/first"), hardlink("opt/third", "opt/second"),
		hardlink("opt/rights", "usr/share/common-licenses/Artistic"),
		symlink("opt/absolute", "/etc/motd"), symlink("opt/dangling", "../nowhere/at/all"), symlink("opt/long", deep+"target"),
		file("opt/setuid", "#!/bin/sh\n").mode(0o4755), file("opt/setgid", "#!/bin/sh\n").mode(0o2711),
		file("opt/ping", "#!/bin/sh\n").mode(0o755).xattr("security.capability", capability),
		file("opt/noted", "x\n").xattr("user.note", "a note").xattr("user.bytes", "\xff\xfe\x80"),
		dir("opt/noted.d").xattr("user.note", "of a directory"),
		file("opt/owned", "x\n").owner(3000000, 3000001).mode(0o400),
		symlink("opt/owned-link", "owned").owner(1234, 5678),
		device(tar.TypeChar, "opt/char", 10, 229), device(tar.TypeBlock, "opt/block", 259, 1048575), device(tar.TypeFifo, "opt/fifo", 0, 0),
		file("opt/"+strings.Repeat("pax", 80), "a long name\n"),
		file("opt/"+strings.Repeat("gnu", 80), "a long name\n").gnu(),
		file("opt/Ünïcödé ☃ \"quoted\"", "x\n"), file("opt/line\nbreak", "x\n"),
	}
	for name := "opt/" + element; len(name) < len(deep); name += "/" + element {
		entries = append(entries, dir(name))
	}
	return append(entries, file(deep+"file", "x\n"))
}

// writeOwn writes the layer of all kinds of files.
func (l *lab) writeOwn(name string, sparse bool) error {
	large, small, err := contents(l.large())
	if err != nil {
		return err
	}
	entries := own(large, small)
	for _, format := range []string{"gnu", "posix"} {
		e := file("opt/sparse-"+format, sparseContent(small))
		e.ModTime = e.ModTime.Truncate(1e9)
		if sparse {
			if e.raw, err = l.gnuTar(format, e, small); err != nil {
				return err
			}
		}
		entries = append(entries, e)
	}
	return writeFile(name, func(w io.Writer) error { return writeTar(w, entries...) })
}

// contents returns real content: programs, of so many bytes, and a piece of source text.
func contents(size int) (large, small []byte, err error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, nil, err
	}
	root := strings.TrimSpace(string(goroot))
	programs, err := filepath.Glob(filepath.Join(root, "pkg/tool/*/*"))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range append([]string{filepath.Join(root, "bin/go")}, programs...) {
		p, err := os.ReadFile(name)
		if err != nil {
			return nil, nil, err
		}
		large = append(large, p...)
	}
	small, err = os.ReadFile(filepath.Join(root, "src/net/http/server.go"))
	if err != nil {
		return nil, nil, err
	}
	if len(large) < size || len(small) < smallSize {
		return nil, nil, errors.New("the Go installation is too small")
	}
	return large[:size], small[:smallSize], nil
}

// Where a sparse file has its data, in bytes.
const (
	sparseSize = 3 << 20
	sparseAt   = 1 << 20
)

// sparseContent is data in the middle, and at the end.
func sparseContent(data []byte) string {
	p := make([]byte, sparseSize)
	copy(p[sparseAt:], data)
	copy(p[sparseSize-len(data):], data)
	return string(p)
}

// gnuTar returns a sparse file as GNU tar writes it.
func (l *lab) gnuTar(format string, e entry, data []byte) ([]byte, error) {
	path := filepath.Join(l.dir, "staged", e.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	_, err1 := f.WriteAt(data, sparseAt)
	_, err2 := f.WriteAt(data, sparseSize-int64(len(data)))
	if err := errors.Join(err1, err2, f.Close(), os.Chmod(path, 0o644), os.Chtimes(path, e.ModTime, e.ModTime)); err != nil {
		return nil, err
	}
	options := []string{"-c", "-S", "--format=" + format, "--numeric-owner", "--owner=0", "--group=0", "-C", filepath.Join(l.dir, "staged"), e.Name}
	if format == "posix" { // its own records would differ each time
		options = append([]string{"--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"}, options...)
	}
	p, err := exec.Command("tar", options...).Output()
	if err != nil {
		return nil, fmt.Errorf("tar: %w", err)
	}
	end := len(bytes.TrimRight(p, "\x00"))
	return p[:(end+511)/512*512], nil // without the blocks at the end
}

// writeFile makes a file.
func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
