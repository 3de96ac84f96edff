package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/upstreamtest"
)

// large is the content of a layer of several chunks and stripes.
var large = sync.OnceValue(func() string { return string(upstreamtest.Random(10*chunk.Size+77, 3)) })

// addLarge adds an image with a large layer.
func (l *library) addLarge(tag string) (image, layer ocispec.Descriptor) {
	layer = l.blob(layerType, large())
	image = l.manifest(imageType, map[string]any{"config": l.blob(ocispec.MediaTypeImageConfig, `{"of":"`+tag+`"}`), "layers": []any{layer}})
	l.tag(tag, image)
	return image, layer
}

// commands are the ways in which a command is run and interrupted.
var commands = map[string]func(t *testing.T, args ...string) (interrupt func()){
	"cancelled": func(t *testing.T, args ...string) func() {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan int, 1)
		go func() { done <- run(ctx, args, io.Discard, io.Discard) }()
		return func() {
			cancel()
			if status := <-done; status != 1 {
				t.Errorf("the command ends with %d", status)
			}
		}
	},
	"killed": func(t *testing.T, args ...string) func() {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledCommand$")
		cmd.Env = append(os.Environ(), killedArgs+"="+strings.Join(args, "\n"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return func() {
			_ = cmd.Process.Kill()
			if err := cmd.Wait(); err == nil {
				t.Error("the command was not killed")
			}
		}
	},
}

const killedArgs = "GRANARY_TEST_KILLED"

// TestKilledCommand is the process of a command that is killed.
func TestKilledCommand(t *testing.T) {
	if args := os.Getenv(killedArgs); args != "" {
		os.Exit(run(context.Background(), strings.Split(args, "\n"), os.Stdout, os.Stderr))
	}
}

// until waits for something that is going to be so.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

// stalling is the library, of whose large layers nothing comes from an offset on until they are
// let go.
type stalling struct {
	*library
	at int64
	on chan struct{} // closed when they are let go
}

func (s *stalling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	pos, _ := strconv.ParseInt(from, 10, 64)
	s.library.ServeHTTP(&stalled{w, r, s, pos}, r)
}

type stalled struct {
	http.ResponseWriter
	r   *http.Request
	s   *stalling
	pos int64
}

func (w *stalled) Write(p []byte) (int, error) {
	if w.pos += int64(len(p)); w.pos > w.s.at {
		w.ResponseWriter.(http.Flusher).Flush() // the registry answers; it is what it sends that does not come
		select {
		case <-w.s.on:
		case <-w.r.Context().Done():
		}
	}
	return w.ResponseWriter.Write(p)
}

// slow is a node whose registry stalls in the midst of large layers.
func slow(t *testing.T, l *library) (n *node.Node, letGo func()) {
	s := &stalling{l, 6*chunk.Size + 1000, make(chan struct{})}
	letGo = sync.OnceFunc(func() { close(s.on) })
	n = testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"registry.test": fileServer(t, s)}}})
	t.Cleanup(letGo)
	return n, letGo
}

// sent returns how many bytes have left a node's registry face.
func sent(t *testing.T, n *node.Node) (sum int64) {
	t.Helper()
	_, text := get(t, n.AdminURL()+"/metrics")
	for _, m := range regexp.MustCompile(`(?m)^granary_bytes_total\{face="http",.* (\S+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += int64(v)
	}
	return sum
}

// unfinished is where the forms of an export keep what they have of a large layer.
var unfinished = map[string]func(dir string, layer digest.Digest) string{
	"layout": func(dir string, layer digest.Digest) string {
		return filepath.Join(dir, "out/blobs/sha256", "."+layer.Encoded()+".part")
	},
	"archive": func(dir string, _ digest.Digest) string { return filepath.Join(dir, "out.tar.part") },
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// TestAnExportGoesOnWithinABlob: what was there when it was interrupted is not sent again, unless it
// turns out to be wrong; and what comes of it is the same as if it had not been interrupted.
func TestAnExportGoesOnWithinABlob(t *testing.T) {
	for form, files := range exports {
		for how, start := range commands {
			for _, damaged := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, damaged %v", form, how, damaged), func(t *testing.T) {
					l, dir := newLibrary(t), t.TempDir()
					image, layer := l.addLarge("v1")
					n, letGo := slow(t, l)
					args := []string{"export", "registry.test/app:v1", files.target(dir), "--node", n.AdminURL()}
					part := unfinished[form](dir, layer.Digest)
					interrupt := start(t, args...)
					until(t, "a part of the layer is there", func() bool { return fileSize(part) > 2*chunk.Size })
					if status, _, errs := granary(t, args...); status != 1 || !strings.Contains(errs, "another export or pull is writing to it") {
						t.Errorf("a second one at the same time: %d, %s", status, errs)
					}
					interrupt()
					if _, err := os.Stat(strings.TrimSuffix(part, ".part")); err == nil {
						t.Fatal("it is complete")
					}
					there := fileSize(part)
					if damaged {
						alter(t, part, there-chunk.Size)
					}
					letGo()
					before := sent(t, n)
					if status, _, errs := granary(t, args...); status != 0 {
						t.Fatalf("it does not go on: %s", errs)
					}
					// With manifests, what surrounds the layer in an archive, and what was on its way when
					// it was interrupted.
					most := layer.Size - there + 10_000 + 2*chunk.Size
					if damaged {
						most += layer.Size
					}
					if again := sent(t, n) - before; again > most || damaged && again < layer.Size {
						t.Errorf("of %d bytes %d were there, and %d were sent again", layer.Size, there, again)
					}
					out := files.files(t, dir)
					if !holds(t, out, layer.Digest) || !holds(t, out, image.Digest) {
						t.Error("something is missing")
					}
					if fileSize(part) > 0 {
						t.Errorf("%s has stayed", part)
					}
					fresh := t.TempDir()
					l.exported(t, "registry.test/app:v1", files.target(fresh))
					same(t, files.target(dir), files.target(fresh))
				})
			}
		}
	}
}

// alter changes a byte of a file.
func alter(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 1)
	_, err = f.ReadAt(p, at)
	p[0]++
	if _, werr := f.WriteAt(p, at); err != nil || werr != nil {
		t.Fatal(err, werr)
	}
}

// same reports a difference between the files of two exports.
func same(t *testing.T, a, b string) {
	t.Helper()
	all := func(at string) map[string]string {
		_, root, _ := strings.Cut(at, ":")
		files := make(map[string]string)
		err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			p, err := os.ReadFile(path)
			files[strings.TrimPrefix(path, root)] = string(digest.FromBytes(p)) + info.Mode().String()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	if a, b := all(a), all(b); fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%v\nis not %v", a, b)
	}
}

// TestPartsOfOtherThings are overwritten or taken away where no other program can have written them, and
// nothing else is.
func TestPartsOfOtherThings(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	l.addLarge("v1")
	target, file := filepath.Join(dir, "out"), filepath.Join(dir, "out.tar")
	other := layoutFile(target, digest.FromString("other"))
	stale, kept := filepath.Join(filepath.Dir(other), "."+filepath.Base(other)+".part"), filepath.Join(filepath.Dir(other), ".a.note.part")
	if err := os.MkdirAll(filepath.Dir(other), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{stale, kept, filepath.Join(target, ".index.json.part")} {
		write(t, path, strings.Repeat("something else", 2<<20))
	}
	write(t, file+".part", "oci-layout\x00"+strings.Repeat("something else", 2<<20))
	l.exported(t, "registry.test/app:v1", "oci:"+target)
	l.exported(t, "registry.test/app:v1", "oci-archive:"+file)
	for _, path := range []string{stale, file + ".part", filepath.Join(target, ".index.json.part")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	if fileSize(kept) == 0 {
		t.Errorf("%s is gone, and nobody's part", kept)
	}
	again := filepath.Join(dir, "again.tar")
	l.exported(t, "registry.test/app:v1", "oci-archive:"+again)
	same(t, "oci-archive:"+file, "oci-archive:"+again)
}

// TestPartsThatAreNoFiles are not written to.
func TestPartsThatAreNoFiles(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	l.tag("v1", l.image("i"))
	outside, file := filepath.Join(dir, "outside"), filepath.Join(dir, "out.tar")
	write(t, outside, "mine")
	for name, put := range map[string]func(path string) error{
		"a symlink":   func(path string) error { return os.Symlink(outside, path) },
		"a pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		if err := put(file + ".part"); err != nil {
			t.Fatal(err)
		}
		if status, out, errs := l.export(t, "registry.test/app:v1", "oci-archive:"+file); status != 1 || !strings.Contains(errs, file+".part") {
			t.Errorf("%s: %d, %s%s", name, status, out, errs)
		}
		remove(t, file+".part")
	}
	if p, err := os.ReadFile(outside); err != nil || string(p) != "mine" {
		t.Errorf("the other file is %q, %v", p, err)
	}
}

// TestLockedTwice: a file and a directory belong to one at a time, in this process too.
func TestLockedTwice(t *testing.T) {
	dir := t.TempDir()
	l, err := openLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openLayout(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second time: %v", err)
	}
	l.close(true)
	if l, err = openLayout(dir); err != nil {
		t.Errorf("after the first: %v", err)
	}
	l.close(false)
	name := filepath.Join(dir, "f")
	w, err := openPart(name, name+".part")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openPart(name, name+".part"); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("a second time: %v", err)
	}
	if err := w.finish(nil); err != nil {
		t.Error(err)
	}
	failed := errors.New("failed")
	if w, err = openPart(name, name+".part"); err != nil || !errors.Is(w.finish(failed), failed) {
		t.Errorf("%v", err)
	}
	if files, _ := filepath.Glob(name + "*"); len(files) != 1 {
		t.Errorf("there are %v", files)
	}
}
