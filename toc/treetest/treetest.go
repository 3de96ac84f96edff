// Package treetest makes a tree with everything in it that a layer can have, and
// says what is in a tree and in a layer in the same words: what a layer was made of
// is what it says it has if the words are the same.
package treetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// Make makes a tree in an empty directory, which takes root: a small one, of a few
// KiB, or one of 20 MiB and 1,200 files.
func Make(dir string, large bool) error {
	m := maker{dir: dir}
	m.small()
	if large {
		m.large()
	}
	m.date()
	return m.err
}

// maker stops at its first error.
type maker struct {
	dir string
	err error
}

func (m *maker) do(name string, f func(path string) error) {
	if m.err == nil {
		m.err = f(filepath.Join(m.dir, name))
	}
}

func (m *maker) mkdir(name string) {
	m.do(name, func(path string) error { return os.MkdirAll(path, 0o755) })
}

func (m *maker) file(name, content string) {
	m.do(name, func(path string) error { return os.WriteFile(path, []byte(content), 0o644) })
}

func (m *maker) symlink(name, target string) {
	m.do(name, func(path string) error { return os.Symlink(target, path) })
}

func (m *maker) link(name, old string) {
	m.do(name, func(path string) error { return os.Link(filepath.Join(m.dir, old), path) })
}

func (m *maker) node(name string, mode, major, minor uint32) {
	m.do(name, func(path string) error { return unix.Mknod(path, mode|0o600, int(unix.Mkdev(major, minor))) })
}

func (m *maker) attr(name, key, value string) {
	m.do(name, func(path string) error { return unix.Lsetxattr(path, key, []byte(value), 0) })
}

func (m *maker) small() {
	for _, name := range []string{"a/b/c", "empty", "etc", "opaque"} {
		m.mkdir(name)
	}
	m.file("etc/hello", "hello\n")
	m.link("etc/again", "etc/hello")
	m.link("a/b/third", "etc/hello")
	m.file("etc/none", "")
	m.file("etc/text", strings.Repeat("the quick brown fox jumps over the lazy dog\n", 140))
	m.sparse("etc/sparse", 12<<10)
	m.file("a/setuid", "x")
	m.do("a/setuid", func(path string) error {
		return errors.Join(os.Chown(path, 70000, 80000), os.Chmod(path, 0o755|fs.ModeSetuid))
	})
	m.symlink("a/link", "../etc/hello")
	m.symlink("a/long", strings.Repeat("x/", 200))
	m.node("fifo", unix.S_IFIFO, 0, 0)
	m.node("socket", unix.S_IFSOCK, 0, 0)
	m.node("null", unix.S_IFCHR, 1, 3)
	m.node("block", unix.S_IFBLK, 259, 70000)
	m.node("whiteout", unix.S_IFCHR, 0, 0)
	m.link("a/whiteout", "whiteout")
	m.attr("opaque", "trusted.overlay.opaque", "y")
	m.attr("etc/hello", "user.one", "1")
	m.attr("etc/hello", "user.empty", "")
	m.attr("a/setuid", "security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
}

func (m *maker) large() {
	random := rand.New(rand.NewChaCha8([32]byte{}))
	m.mkdir("usr/bin")
	m.file("usr/"+strings.Repeat("n", 254), "long")
	for i := range 1000 {
		m.file(fmt.Sprintf("usr/bin/%d", i), strings.Repeat(fmt.Sprintln("file", i), i%100))
	}
	for i := range 10 {
		m.attr(fmt.Sprintf("usr/bin/%d", i), "user.shared", strings.Repeat("v", 2000))
		m.attr(fmt.Sprintf("usr/bin/%d", i), "user.own", strings.Repeat("o", i*100))
	}
	noise := make([]byte, 2<<20)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	m.file("usr/noise", string(noise))
	m.file("usr/mixed", strings.Repeat(string(noise[:100000])+strings.Repeat("text", 50000), 10))
	m.sparse("usr/sparse", 10<<20)
	for i := range 200 {
		m.file(fmt.Sprintf("usr/odd%d", i), string(noise[i:i+4000+i*37]))
	}
}

// sparse makes a file that has something in its middle and at its end.
func (m *maker) sparse(name string, size int64) {
	m.file(name, "")
	m.do(name, func(path string) error {
		return errors.Join(os.Truncate(path, size), writeAt(path, "middle", size/2+3), writeAt(path, "end", size-3))
	})
}

// Letters returns n bytes that compress to about half.
func Letters(n int) []byte {
	random := rand.New(rand.NewChaCha8([32]byte{}))
	p := make([]byte, n)
	for i := range p {
		p[i] = 'a' + byte(random.Uint32()%16)
	}
	return p
}

func writeAt(path, content string, off int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(content), off)
	return errors.Join(err, f.Close())
}

// date gives everything times that do not depend on when it was made.
func (m *maker) date() {
	seconds := int64(981173106)
	m.do("", func(path string) error {
		return filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			seconds++
			at := []unix.Timespec{{Sec: seconds, Nsec: seconds % 1000}, {Sec: seconds, Nsec: seconds % 1000}}
			return unix.UtimesNanoAt(unix.AT_FDCWD, path, at, unix.AT_SYMLINK_NOFOLLOW)
		})
	})
}

// thing is what lists say of a name.
type thing struct {
	toc.Entry
	links int
	sum   [sha256.Size]byte
}

func (x *thing) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %v %04o %d:%d %s", x.Name, x.Type, x.Mode, x.UID, x.GID, x.ModTime.UTC().Format(time.RFC3339Nano))
	switch x.Type {
	case toc.Regular:
		fmt.Fprintf(&b, " %d bytes %x, %d names", x.Size, x.sum[:4], x.links)
	case toc.Symlink:
		fmt.Fprintf(&b, " to %q", x.Link)
	case toc.CharDevice, toc.BlockDevice:
		fmt.Fprintf(&b, " %d/%d", x.Major, x.Minor)
	}
	for _, key := range slices.Sorted(maps.Keys(x.Xattrs)) {
		fmt.Fprintf(&b, " %s=%q", key, x.Xattrs[key])
	}
	return b.String() + "\n"
}

// Layer lists what is in a layer, by name.
func Layer(l *toc.Layer) (string, error) {
	links := make(map[string]int)
	for e := range l.All() {
		if e.Type == toc.Hardlink {
			links[e.Link]++
		}
	}
	var b strings.Builder
	for e := range l.All() {
		x := thing{Entry: e}
		if e.Type == toc.Hardlink {
			var ok bool
			if x.Entry, ok = l.Lookup(e.Link); !ok {
				return "", fmt.Errorf("%s: a link to %s, which is not there", e.Name, e.Link)
			}
		}
		x.links = 1 + links[x.Name]
		if x.Type == toc.Regular {
			sum := sha256.New()
			if _, err := io.Copy(sum, io.NewSectionReader(toc.Open(l, &x.Entry, nil), 0, x.Size)); err != nil {
				return "", err
			}
			sum.Sum(x.sum[:0])
		}
		x.Name = e.Name
		b.WriteString(x.String())
	}
	return b.String(), nil
}

// Tree lists what is in a tree, by name, but for sockets, with times of a precision.
func Tree(dir string, precision time.Duration) (string, error) {
	var all []thing
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSocket != 0 {
			return err
		}
		x, err := look(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		x.Name = toc.Clean(path[len(dir):])
		x.ModTime = x.ModTime.Truncate(precision)
		all = append(all, x)
		return nil
	})
	slices.SortFunc(all, func(x, y thing) int { return strings.Compare(x.Name, y.Name) })
	var b strings.Builder
	for _, x := range all {
		b.WriteString(x.String())
	}
	return b.String(), err
}

var types = map[uint32]toc.Type{
	unix.S_IFDIR: toc.Directory, unix.S_IFREG: toc.Regular, unix.S_IFLNK: toc.Symlink,
	unix.S_IFCHR: toc.CharDevice, unix.S_IFBLK: toc.BlockDevice, unix.S_IFIFO: toc.FIFO,
}

func look(path string) (x thing, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return x, err
	}
	x.Type, x.Mode, x.UID, x.GID = types[st.Mode&unix.S_IFMT], st.Mode&0o7777, st.Uid, st.Gid
	x.ModTime, x.links = time.Unix(st.Mtim.Unix()), int(st.Nlink)
	switch x.Type {
	case toc.Regular:
		x.Size = st.Size
		p, err := os.ReadFile(path)
		if err != nil {
			return x, err
		}
		x.sum = sha256.Sum256(p)
	case toc.Symlink:
		if x.Link, err = os.Readlink(path); err != nil {
			return x, err
		}
	case toc.CharDevice, toc.BlockDevice:
		x.Major, x.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	x.Xattrs, err = attrs(path)
	return x, err
}

func attrs(path string) (map[string]string, error) {
	names := make([]byte, toc.MaxXattrs)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for _, name := range strings.Split(string(names[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, toc.MaxXattrs)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		all[name] = string(value[:n])
	}
	return all, nil
}
