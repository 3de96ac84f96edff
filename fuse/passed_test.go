package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/toc"
)

// lab is a mount of which d/big may be complete or not. If it is, it can be told which
// way it is read.
type lab struct {
	*testing.T
	big, file string // in the mount, and where the complete file is, if it is
	sent      []byte // what is read through the mount's process
	passed    []byte // and by the kernel
}

func newLab(t *testing.T) *lab {
	dir, mnt := t.TempDir(), t.TempDir()
	serveAt(t, mnt, filesVariable+"="+dir)
	return labAt(t, dir, mnt)
}

func labAt(t *testing.T, dir, mnt string) *lab {
	l := &lab{T: t, big: filepath.Join(mnt, "d/big"), file: filepath.Join(dir, "big"), sent: make([]byte, 5<<20)}
	if err := new(pattern).ReadAt(t.Context(), &toc.File{}, l.sent, 0); err != nil {
		t.Fatal(err)
	}
	l.passed = bytes.Repeat([]byte("passed"), 1<<20)[:len(l.sent)]
	return l
}

// complete puts the complete file where it is found.
func (l *lab) complete(content []byte) {
	l.Helper()
	if err := os.WriteFile(l.file+".new", content, 0o600); err != nil {
		l.Fatal(err)
	}
	if err := os.Rename(l.file+".new", l.file); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) gone() {
	l.Helper()
	if err := os.Remove(l.file); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) open() *os.File {
	l.Helper()
	f, err := os.Open(l.big)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { f.Close() })
	return f
}

func (l *lab) isPassed(f *os.File) bool {
	l.Helper()
	p := make([]byte, len(l.sent))
	_, err := f.ReadAt(p, 0)
	return l.which(p, err)
}

func (l *lab) which(p []byte, err error) (passed bool) {
	l.Helper()
	if err != nil || !bytes.Equal(p, l.sent) && !bytes.Equal(p, l.passed) {
		l.Fatalf("it is read neither way, %v", err)
	}
	return bytes.Equal(p, l.passed)
}

func (l *lab) want(passed bool, f *os.File, when string) {
	l.Helper()
	if l.isPassed(f) != passed {
		l.Errorf("%s: passed to the kernel is %v", when, !passed)
	}
}

// wantNext waits until those who open the file anew get it in a way: the kernel tells of
// a file's end when it has the time.
func (l *lab) wantNext(passed bool, when string) {
	l.Helper()
	for range 200 {
		f := l.open()
		is := l.isPassed(f)
		f.Close()
		if is == passed {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.Fatalf("%s: never is it that passed to the kernel is %v", when, passed)
}

// mapped maps the file, which can be closed then.
func (l *lab) mapped(f *os.File) []byte {
	l.Helper()
	p, err := unix.Mmap(int(f.Fd()), 0, len(l.sent), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		l.Fatal(err)
	}
	return p
}

func (l *lab) unmap(p []byte) {
	l.Helper()
	if err := unix.Munmap(p); err != nil {
		l.Fatal(err)
	}
}

func TestACompleteFileIsPassedToTheKernel(t *testing.T) {
	l := newLab(t)
	first := l.open()
	l.want(false, first, "before it is complete")
	l.complete(l.passed)
	second := l.open()
	l.want(false, second, "while others have it open")
	first.Close()
	l.want(false, l.open(), "while one has")
	l.want(false, second, "to its end")
}

func TestItIsPassedToAllWhoHaveItOpen(t *testing.T) {
	l := newLab(t)
	l.complete(l.passed)
	first := l.open()
	l.want(true, first, "complete")
	l.gone()
	second := l.open()
	l.want(true, second, "while it is passed")
	first.Close()
	l.want(true, second, "while it is open")
	l.want(true, l.open(), "still")
}

func TestItIsPassedWhenNobodyHasItOpenOtherwise(t *testing.T) {
	l := newLab(t)
	f := l.open()
	p := l.mapped(f)
	f.Close()
	l.complete(l.passed)
	l.want(false, l.open(), "while it is mapped")
	if l.which(p, nil) {
		t.Error("what is mapped has changed")
	}
	l = newLab(t)
	l.wantNext(false, "at first")
	l.complete(l.passed)
	l.wantNext(true, "complete")
	f = l.open()
	p = l.mapped(f)
	f.Close()
	l.gone()
	l.wantNext(false, "gone") // though it is mapped
	if !l.which(p, nil) {
		t.Error("what is mapped has changed")
	}
	l.unmap(p)
	l = newLab(t)
	f = l.open()
	p = l.mapped(f)
	f.Close()
	l.complete(l.passed)
	l.unmap(p)
	l.wantNext(true, "not mapped any more")
	l.gone()
	l.wantNext(false, "gone again")
}

// TestAnyOrder has programs open, map and close the file in any order while it comes and
// goes: they get its bytes, and no error.
func TestAnyOrder(t *testing.T) {
	l := newLab(t)
	done := make(chan struct{})
	var turning, reading sync.WaitGroup
	turning.Go(func() {
		for {
			l.complete(l.sent)
			time.Sleep(time.Millisecond)
			l.gone()
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for worker := range 8 {
		reading.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 150 {
				if err := l.once(random); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	reading.Wait()
	close(done)
	turning.Wait()
}

// once opens the file, reads it in some way, and closes it some time.
func (l *lab) once(random *rand.Rand) error {
	f, err := os.Open(l.big)
	if err != nil {
		return err
	}
	defer f.Close()
	at := random.IntN(len(l.sent)/4096) * 4096
	n := min(1+random.IntN(1<<20), len(l.sent)-at)
	p := make([]byte, n)
	if random.IntN(2) == 0 {
		all, err := unix.Mmap(int(f.Fd()), 0, len(l.sent), unix.PROT_READ, unix.MAP_PRIVATE)
		if err != nil {
			return fmt.Errorf("mmap: %w", err)
		}
		defer func() { _ = unix.Munmap(all) }()
		f.Close()
		copy(p, all[at:])
	} else if _, err := f.ReadAt(p, int64(at)); err != nil {
		return err
	}
	if !bytes.Equal(p, l.sent[at:at+n]) {
		return fmt.Errorf("%d bytes at %d are wrong", n, at)
	}
	return nil
}

func TestOverlaysAboveAMount(t *testing.T) {
	for _, passing := range []bool{true, false} {
		dir, mnt := t.TempDir(), t.TempDir()
		var env []string
		if passing {
			env = []string{filesVariable + "=" + dir}
		}
		serveAt(t, mnt, env...)
		l := labAt(t, dir, mnt)
		l.complete(l.passed)
		merged, err := overlay(t, mnt)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(merged, "d/big"))
		if err != nil {
			t.Fatal(err)
		}
		l.want(passing, f, "through an overlay")
		f.Close()
		if _, err := overlay(t, merged); (err == nil) == passing || err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("passed %v: an overlay over that: %v", passing, err)
		}
	}
}

// overlay lays an overlay over a directory.
func overlay(t *testing.T, lower string) (merged string, err error) {
	t.Helper()
	top := t.TempDir()
	upper, work, merged := filepath.Join(top, "upper"), filepath.Join(top, "work"), filepath.Join(top, "merged")
	for _, dir := range []string{upper, work, merged} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work); err != nil {
		return "", err
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	return merged, nil
}

// TestWhatTheKernelRefuses has complete files on an overlay, which cannot be passed.
func TestWhatTheKernelRefuses(t *testing.T) {
	mnt := t.TempDir()
	if os.Geteuid() != 0 {
		serveAt(t, mnt) // says what is missing
	}
	dir, err := overlay(t, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	serveAt(t, mnt, filesVariable+"="+dir)
	l := labAt(t, dir, mnt)
	l.complete(l.passed)
	first, second := l.open(), l.open()
	l.want(false, first, "refused")
	l.want(false, second, "and again")
	first.Close()
	second.Close()
	l.want(false, l.open(), "and afterwards")
}
