package mounter

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/toc"
)

// zeros are contents of zeros.
type zeros struct{}

func (zeros) ReadAt(_ context.Context, _ *toc.File, p []byte, _ int64) error {
	clear(p)
	return nil
}

// openLayer opens layers that have a file, f.
func openLayer(_ context.Context, l Layer) (*fuse.FileSystem, error) {
	if l.Image == "none" {
		return nil, errors.New("there is no such layer")
	}
	var b toc.Builder
	if err := b.Add(toc.Entry{Name: "f", Type: toc.Regular, Size: 10, Extents: []toc.Extent{{Size: 10}}}); err != nil {
		return nil, err
	}
	table, err := b.Done()
	if err != nil {
		return nil, err
	}
	tree, err := toc.Lower(&toc.Layer{TOC: table})
	if err != nil {
		return nil, err
	}
	return fuse.New(fuse.Config{Tree: tree, Contents: zeros{}})
}

// lab is a directory of mounts, and servers that a client starts in this process. Nothing
// in it may be looked at, but through /proc.
type lab struct {
	*Client
	dir, below string

	mu      sync.Mutex
	nodes   []Node
	started int
	stop    context.CancelFunc // of the server that was started last
}

// needRoot skips a test where nothing can be mounted, and fails it in CI.
func needRoot(t *testing.T) {
	t.Helper()
	_, err := os.Stat("/dev/fuse")
	if os.Geteuid() != 0 {
		err = errors.New("this is not root")
	}
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("MISSING: %v; CI has it", err)
	default:
		t.Skipf("MISSING: %v", err)
	}
}

func newLab(t *testing.T, idle time.Duration) *lab {
	t.Helper()
	needRoot(t)
	top := t.TempDir()
	l := &lab{dir: filepath.Join(top, strings.Repeat("long", 30)), below: filepath.Join(top, "mounts")}
	l.Client = NewClient(ClientConfig{Dir: l.dir, Node: Node{URL: "http://node.test"}, Start: func() (<-chan error, error) { return l.start(t, idle) }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		l.stop()
		eventually(t, "nothing is mounted", func() bool { return !strings.Contains(mounts(t), l.below) })
	})
	return l
}

func (l *lab) start(t *testing.T, idle time.Duration) (<-chan error, error) {
	s, err := NewServer(ServerConfig{Dir: l.dir, Below: l.below, Open: openLayer, IdleFor: idle, Attached: func(n Node) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.nodes = append(l.nodes, n)
	}})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	l.mu.Lock()
	l.stop = stop
	l.started++
	l.mu.Unlock()
	ended := make(chan error, 1)
	go func() {
		err := s.Run(ctx, func() {})
		if err != nil {
			t.Error(err)
		}
		ended <- errors.Join(err, errors.New("ended"))
	}()
	return ended, nil
}

// at makes a directory to mount at.
func (l *lab) at(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(l.below, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mounts(t *testing.T) string {
	t.Helper()
	p, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

var one, two = Layer{Image: "app", Digest: "sha256:1"}, Layer{Image: "app", Digest: "sha256:2"}

func TestMounts(t *testing.T) {
	l, ctx := newLab(t, 0), t.Context()
	dir := l.at(t, "one")
	if err := l.Mounted(ctx, dir); !errors.Is(err, ErrNotMounted) {
		t.Errorf("before: %v", err)
	}
	for range 2 {
		if err := l.Mount(ctx, dir, one); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Mounted(ctx, dir); err != nil || strings.Count(mounts(t), " "+dir+" fuse.granary ") != 1 {
		t.Errorf("mounted: %v, %s", err, mounts(t))
	}
	if err := l.Mount(ctx, dir, two); err == nil {
		t.Error("two layers at one place")
	}
	if all, err := l.List(ctx); err != nil || len(all) != 1 || all[0].Dir != dir || all[0].Digest != one.Digest {
		t.Errorf("list: %+v, %v", all, err)
	}
	for range 2 {
		if err := l.Unmount(ctx, dir); err != nil || strings.Contains(mounts(t), dir) {
			t.Errorf("unmount: %v", err)
		}
	}
	if err := l.Mounted(ctx, dir); !errors.Is(err, ErrNotMounted) {
		t.Errorf("after: %v", err)
	}
	if err := l.Mount(ctx, dir, two); err != nil {
		t.Errorf("another layer after: %v", err)
	}
}

func TestWhatCannotBeMounted(t *testing.T) {
	l, ctx := newLab(t, 0), t.Context()
	if err := l.Mount(ctx, l.at(t, "none"), Layer{Image: "none"}); err == nil || !strings.Contains(err.Error(), "no such layer") {
		t.Errorf("a layer that is not there: %v", err)
	}
	for _, dir := range []string{"/tmp", l.below, l.below + "/../x", "relative", l.below + "x/y"} {
		if err := l.Mount(ctx, dir, one); err == nil || !strings.Contains(err.Error(), "it is not in") {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := l.Mount(ctx, filepath.Join(l.below, "nowhere"), one); err == nil {
		t.Error("mounted at a directory that is not there")
	}
	if all, err := l.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("list: %+v, %v", all, err)
	}
}

// TestWhatSomebodyUnmounts is not mounted, and can be mounted again.
func TestWhatSomebodyUnmounts(t *testing.T) {
	l, ctx := newLab(t, 0), t.Context()
	dir := l.at(t, "one")
	if err := l.Mount(ctx, dir, one); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := l.Mounted(ctx, dir); !errors.Is(err, ErrNotMounted) {
		t.Error(err)
	}
	if err := l.Mount(ctx, dir, one); err != nil {
		t.Error(err)
	}
}

// TestAServerThatEnds unmounts, and its client starts another one.
func TestAServerThatEnds(t *testing.T) {
	l, ctx := newLab(t, 0), t.Context()
	dir := l.at(t, "one")
	if err := l.Mount(ctx, dir, one); err != nil {
		t.Fatal(err)
	}
	l.stop()
	eventually(t, "there is another server", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.started == 2 && len(l.nodes) == 2
	})
	if strings.Contains(mounts(t), dir) {
		t.Error("a mount is left")
	}
	eventually(t, "it is asked", func() bool { return errors.Is(l.Mounted(ctx, dir), ErrNotMounted) })
	if err := l.Mount(ctx, dir, one); err != nil {
		t.Error(err)
	}
	if l.nodes[0].URL != "http://node.test" || l.nodes[1] != l.nodes[0] {
		t.Errorf("attached: %+v", l.nodes)
	}
}

// TestAServerThatNobodyNeeds ends, and one that has mounts does not.
func TestAServerThatNobodyNeeds(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	dir, below := filepath.Join(top, "mounter"), filepath.Join(top, "mounts")
	s, err := NewServer(ServerConfig{Dir: dir, Below: below, Open: openLayer, Attached: func(Node) {}, IdleFor: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	left, ended := make(chan struct{}), make(chan error)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { ended <- s.Run(ctx, func() { close(left) }) }()
	eventually(t, "it listens", func() bool { _, err := os.Stat(filepath.Join(dir, socketName)); return err == nil })
	client := NewClient(ClientConfig{Dir: dir, Start: func() (<-chan error, error) { return nil, errors.New("it is there") }})
	actx, leave := context.WithCancel(t.Context())
	defer leave()
	attached := make(chan struct{})
	go func() { defer close(attached); client.Run(actx) }()
	at := filepath.Join(below, "one")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := client.Mount(t.Context(), at, one); err != nil {
		t.Fatal(err)
	}
	leave()
	<-attached
	if s.endIfIdle() {
		t.Error("a server with a mount is idle")
	}
	// Nobody is attached any more, and somebody takes the mount away.
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	<-left
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAClientWithoutAServer(t *testing.T) {
	client := NewClient(ClientConfig{Dir: t.TempDir(), Start: func() (<-chan error, error) {
		ended := make(chan error, 1)
		ended <- errors.New("exit status 1: there is no room")
		return ended, nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); client.Run(ctx) }()
	eventually(t, "it is said why", func() bool {
		err := client.Unmount(t.Context(), "/dir")
		return err != nil && strings.Contains(err.Error(), "there is no room")
	})
	cancel()
	<-done
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("long", 30), "made/socket")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("where somebody listens: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	first.Close()
	second, err := Listen(path) // over what is left
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	go func() {
		if c, err := second.Accept(); err == nil {
			c.Close()
		}
	}()
	var c net.Conn
	if c, err = dial(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	c.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil {
		t.Error("a file was replaced")
	}
	if p, err := os.ReadFile(file); string(p) != "precious" {
		t.Error(err)
	}
}
