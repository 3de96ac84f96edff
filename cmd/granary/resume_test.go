package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
		w.s.mu.Unlock() // which the library holds while it answers
		select {
		case <-w.s.on:
		case <-w.r.Context().Done():
		}
		w.s.mu.Lock()
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
					most := layer.Size - there + 10_000 // with manifests, and what surrounds the layer in an archive
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

// TestPartsOfOtherThings are overwritten or taken away, and nothing else is.
func TestPartsOfOtherThings(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	l.addLarge("v1")
	target, file := filepath.Join(dir, "out"), filepath.Join(dir, "out.tar")
	other := layoutFile(target, digest.FromString("other"))
	stale, kept := filepath.Join(filepath.Dir(other), "."+filepath.Base(other)+".part"), filepath.Join(filepath.Dir(other), ".a.note.part")
	if err := os.MkdirAll(filepath.Dir(other), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{stale, kept, file + ".part", filepath.Join(target, ".index.json.part")} {
		write(t, path, strings.Repeat("something else", 2<<20))
	}
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

// gate is a node's admin listener, as an import sees it that may be interrupted.
type gate struct {
	*httptest.Server
	limit atomic.Int64 // bytes of a blob that are let through
	sent  atomic.Int64 // bytes of blobs that have come
}

func newGate(t *testing.T, n *node.Node) *gate {
	to, err := url.Parse(n.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	g := new(gate)
	g.limit.Store(1 << 40)
	p := httputil.NewSingleHostReverseProxy(to)
	p.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) } // the command is gone
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			r.Body = &gated{r.Body, g, r.Context(), 0}
		}
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

type gated struct {
	io.ReadCloser
	g   *gate
	ctx context.Context
	n   int64
}

func (b *gated) Read(p []byte) (int, error) {
	left := b.g.limit.Load() - b.n
	if left <= 0 {
		_, _ = io.Copy(io.Discard, b.ReadCloser) // a server looks whether a client is there once its request has come
		<-b.ctx.Done()
		return 0, b.ctx.Err()
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), left)])
	b.n += int64(n)
	b.g.sent.Add(int64(n))
	return n, err
}

// begun returns what the node says that it has of a blob.
func begun(t *testing.T, n *node.Node, desc ocispec.Descriptor) int64 {
	t.Helper()
	i := &imported{to: nodeFlag{Node: n.AdminURL()}}
	i.repository.Host, i.repository.Name = "registry.test", "app"
	s, err := i.status(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	return s.Offset
}

// TestAnImportGoesOnWithinABlob: what the node has when an import is interrupted is not sent again.
func TestAnImportGoesOnWithinABlob(t *testing.T) {
	for how, start := range commands {
		t.Run(how, func(t *testing.T) {
			l, dir := newLibrary(t), t.TempDir()
			image, layer := l.addLarge("v1")
			l.exported(t, "registry.test/app:v1", "oci:"+dir)
			n := alone(t, t.TempDir())
			g := newGate(t, n)
			g.limit.Store(4*chunk.Size + 10_000)
			args := []string{"import", "oci:" + dir, "--node", g.URL}
			interrupt := start(t, args...)
			until(t, "a part of the layer is there", func() bool { return begun(t, n, layer) == 4*chunk.Size })
			interrupt()
			if resp, _ := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/manifests/"+string(image.Digest)); resp.StatusCode == 200 {
				t.Error("the image is served before it is there")
			}
			g.limit.Store(1 << 40)
			g.sent.Store(0)
			if status, _, errs := granary(t, args...); status != 0 {
				t.Fatalf("it does not go on: %s", errs)
			}
			if again, most := g.sent.Load(), layer.Size-4*chunk.Size+10_000; again > most {
				t.Errorf("%d bytes were sent again, of which at most %d were missing", again, most)
			}
			if resp, p := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/blobs/"+string(layer.Digest)); resp.StatusCode != 200 || string(p) != large() {
				t.Errorf("the layer is served as %s, %d bytes", resp.Status, len(p))
			}
		})
	}
}

// sendPart sends the beginning of a blob to a node, and then no more.
func sendPart(t *testing.T, n *node.Node, desc ocispec.Descriptor, content string) (status int, text string) {
	t.Helper()
	at := fmt.Sprintf("%s/api/v1/import/%s?repository=registry.test/app&size=%d", n.AdminURL(), desc.Digest, desc.Size)
	req, err := http.NewRequest(http.MethodPut, at, io.MultiReader(strings.NewReader(content))) // of a size that is not known
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	return resp.StatusCode, fmt.Sprint(string(p), err)
}

// TestAnImportAfterWrongBytes is made once more from the beginning.
func TestAnImportAfterWrongBytes(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	_, layer := l.addLarge("v1")
	l.exported(t, "registry.test/app:v1", "oci:"+dir)
	wrong := []byte(large())
	wrong[chunk.Size+5]++
	n := alone(t, t.TempDir())
	if status, text := sendPart(t, n, layer, string(wrong[:3*chunk.Size+9])); status != 400 || !strings.Contains(text, fmt.Sprintf("%s: it ends after %d of %d bytes", layer.Digest, 3*chunk.Size+9, layer.Size)) {
		t.Errorf("a part: %d %s", status, text)
	}
	until(t, "a part of the layer is there", func() bool { return begun(t, n, layer) == 3*chunk.Size })
	g := newGate(t, n)
	if status, _, errs := granary(t, "import", "oci:"+dir, "--node", g.URL); status != 0 {
		t.Fatal(errs)
	}
	if want := 2*layer.Size - 3*chunk.Size; g.sent.Load() < want || g.sent.Load() > want+10_000 {
		t.Errorf("%d bytes were sent, want about %d", g.sent.Load(), want)
	}
	if resp, p := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/blobs/"+string(layer.Digest)); resp.StatusCode != 200 || string(p) != large() {
		t.Errorf("the layer is served as %s, %d bytes", resp.Status, len(p))
	}
}

// TestWhereAnImportGoesOn is where the node has all that comes before, and nowhere else.
func TestWhereAnImportGoesOn(t *testing.T) {
	l := newLibrary(t)
	_, layer := l.addLarge("v1")
	n := alone(t, t.TempDir())
	send := func(query, content string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodPut, fmt.Sprintf("%s/api/v1/import/%s?repository=registry.test/app&size=%d&offset=%s", n.AdminURL(), layer.Digest, layer.Size, query), bytes.NewReader([]byte(content)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		p, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(p)
	}
	size := fmt.Sprint(layer.Size)
	for offset, want := range map[string]string{"-1": "400 ", "x": "400 import: " + string(layer.Digest) + ": offset: ", "5": "400 ", "1048576": "409 ", size: "409 ", "99999999999": "400 "} {
		rest := ""
		if at, err := strconv.ParseInt(offset, 10, 64); err == nil && at >= 0 && at < layer.Size {
			rest = large()[at:]
		}
		status, text := send(offset, rest)
		if !strings.HasPrefix(fmt.Sprint(status, " ", text), want) || !strings.Contains(text, string(layer.Digest)) || n.Status().Store.Blobs != 0 {
			t.Errorf("from %s on, of which nothing is there: %d %s", offset, status, text)
		}
	}
	sendPart(t, n, layer, large()[:10*chunk.Size])
	until(t, "all but the end is there", func() bool { return begun(t, n, layer) == 10*chunk.Size })
	if status, text := send(fmt.Sprint(10*chunk.Size), large()[10*chunk.Size:]); status != 200 {
		t.Errorf("the end: %d %s", status, text)
	}
	if status, text := send(size, ""); status != 200 {
		t.Errorf("nothing more: %d %s", status, text)
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
