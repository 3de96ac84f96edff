package mount

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore/lend"
	"github.com/granary-oci/granary/simtest/programs"
)

// TestFilesThatAreComplete has the kernel read files by itself: one that is kept in
// parts at first, and ones that are kept as they are.
func TestFilesThatAreComplete(t *testing.T) {
	needFUSE(t)
	img := makeImage(t)
	r := startRegistry(t, img)
	n := startNode(t, r.URL)
	dir := t.TempDir()
	p := mount(t, dir, "--node", n.admin)
	node := socketOf(t, n)
	for _, name := range []string{"app/big", "app/granary", "usr/noise"} {
		t.Run(name, func(t *testing.T) {
			f := &passedFile{T: t, path: filepath.Join(dir, name), mount: p, node: node}
			var err error
			if f.want, err = os.ReadFile(filepath.Join(img.unpacked, name)); err != nil {
				t.Fatal(err)
			}
			f.becomesComplete()
		})
	}
	big := &passedFile{T: t, path: filepath.Join(dir, "app/big"), mount: p, node: node}
	big.want, _ = os.ReadFile(filepath.Join(img.unpacked, "app/big"))
	big.outlivesTheNode(n)
	endWell(t, p, dir)

	again := mount(t, dir, "--node", n.admin, "--passthrough=off")
	compare(t, img, dir)
	endWell(t, again, dir)
}

func socketOf(t *testing.T, n *node) *lend.Client {
	t.Helper()
	resp, err := http.Get(n.admin + "/api/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var status struct{ Files string }
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil || status.Files == "" {
		t.Fatalf("no socket is named, %v", err)
	}
	c := lend.NewClient(status.Files)
	t.Cleanup(c.Close)
	return c
}

// passedFile is a large file of a mount, and its content.
type passedFile struct {
	*testing.T
	path  string
	want  []byte
	mount *programs.Process
	node  *lend.Client
}

func (f *passedFile) open() *os.File {
	f.Helper()
	opened, err := os.Open(f.path)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { opened.Close() })
	return opened
}

func (f *passedFile) check(opened *os.File, when string) {
	f.Helper()
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(opened, 0, int64(len(f.want))+1))
	if want := sha256.Sum256(f.want); err != nil || !bytes.Equal(sum.Sum(nil), want[:]) {
		f.Errorf("%s: %d bytes, which are not the file's: %v", when, n, err)
	}
}

// isNotLent checks that the node lends the file to nobody who knows nothing of it but its
// digest.
func (f *passedFile) isNotLent() {
	f.Helper()
	got, err := f.node.Open(context.Background(), lend.Request{Digest: sha256.Sum256(f.want), Size: int64(len(f.want))})
	if err == nil {
		got.Close()
		f.Error("it is lent to somebody who has not mounted the image")
	}
}

// becomesComplete reads the file while it comes, and then.
func (f *passedFile) becomesComplete() {
	first := f.open()
	f.check(first, "while it comes")
	second := f.open()
	mapped, err := unix.Mmap(int(second.Fd()), 0, len(f.want), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		f.Fatal(err)
	}
	third := f.open()
	for _, opened := range []*os.File{first, second, third} {
		f.check(opened, "while it is mapped")
		opened.Close()
	}
	if !bytes.Equal(mapped, f.want) {
		f.Error("what is mapped is not the file")
	}
	if err := unix.Munmap(mapped); err != nil {
		f.Fatal(err)
	}
	f.isPassed().Close()
	f.isNotLent()
}

// isPassed waits until the file is passed to the kernel, which reads it while the mount
// stands still.
func (f *passedFile) isPassed() *os.File {
	f.Helper()
	for range 100 {
		opened := f.open()
		if f.readsByItself(opened) {
			f.check(opened, "passed")
			return opened
		}
		f.check(opened, "not passed yet")
		opened.Close()
		time.Sleep(50 * time.Millisecond)
	}
	f.Fatal("never is it passed to the kernel")
	return nil
}

// readsByItself reports whether a page, of which the mount has no copy in memory, is read
// without asking it.
func (f *passedFile) readsByItself(opened *os.File) bool {
	f.Helper()
	if err := unix.Fadvise(int(opened.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		f.Fatal(err)
	}
	before := f.readByMount()
	if _, err := opened.ReadAt(make([]byte, 1), int64(len(f.want)/2)); err != nil {
		f.Fatal(err)
	}
	return f.readByMount() == before
}

// readByMount returns how often the mount has read anything: requests too.
func (f *passedFile) readByMount() string {
	f.Helper()
	p, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(f.mount.Cmd.Process.Pid), "io"))
	if err != nil {
		f.Fatal(err)
	}
	_, reads, _ := bytes.Cut(p, []byte("syscr: "))
	reads, _, _ = bytes.Cut(reads, []byte("\n"))
	return string(reads)
}

// outlivesTheNode has the node evict the file, and be replaced, while it is open.
func (f *passedFile) outlivesTheNode(n *node) {
	opened := f.isPassed()
	resp, err := http.Post(n.admin+"/api/v1/gc?keep=0", "", nil)
	if err != nil {
		f.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		f.Errorf("evict: %s", resp.Status)
	}
	f.check(opened, "evicted")
	if err := n.End(syscall.SIGKILL); err == nil {
		f.Error("a killed node ended well")
	}
	f.check(opened, "without a node")
	another := f.open()
	f.check(another, "opened without a node")
	programs.Eventually(f.T, "it is read in one way", func() bool { return f.readsByItself(another) })
	opened.Close()
	another.Close()
	n.restart(f.T)
	last := f.open()
	f.check(last, "with another node, which has nothing of it")
	last.Close()
}
