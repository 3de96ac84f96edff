package lend_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/granary-oci/granary/chunkstore/lend"
)

// serve lends what a directory has under the first byte of a digest, until stop.
func serve(t *testing.T, path, dir string) (stop func()) {
	t.Helper()
	s, err := lend.Listen(path, func(q lend.Request) (*os.File, bool) {
		f, err := os.Open(filepath.Join(dir, string(q.Digest[:1])))
		return f, err == nil
	}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func wanted(name string, size int64) lend.Request {
	q := lend.Request{Mount: "mount", Layer: "sha256:layer", Path: "a/path", Size: size}
	copy(q.Digest[:], name)
	return q
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFilesAreLent(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a", "content")
	for _, path := range []string{lend.Path(t.TempDir()), filepath.Join(t.TempDir(), strings.Repeat("long/", 40), "socket")} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Dir(path), filepath.Base(path), "of an earlier process")
		stop := serve(t, path, dir)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the socket: %v, %v", info, err)
		}
		c := lend.NewClient(path)
		defer c.Close()
		for _, path := range []string{"", "f", strings.Repeat("x", 4096)} {
			q := wanted("a", 7)
			q.Path = path
			f, err := c.Open(t.Context(), q)
			if err != nil {
				t.Fatalf("with a path of %d bytes: %v", len(path), err)
			}
			if p, err := io.ReadAll(f); err != nil || string(p) != "content" {
				t.Errorf("%q, %v", p, err)
			}
			if _, err := f.Write([]byte("x")); err == nil {
				t.Error("it can be written to")
			}
			f.Close()
			long, negative := wanted("a", 7), wanted("a", -1)
			long.Path = strings.Repeat("x", 4097)
			for _, q := range []lend.Request{wanted("b", 7), long, negative} {
				if _, err := c.Open(t.Context(), q); !errors.Is(err, lend.ErrNot) {
					t.Errorf("what is not there: %v", err)
				}
			}
		}
		if _, err := c.Open(t.Context(), wanted("a", 8)); err == nil || errors.Is(err, lend.ErrNot) {
			t.Errorf("a file of another size: %v", err)
		}
		stop()
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket of a server that has ended: %v", err)
		}
	}
}

func TestAServerIsReplaced(t *testing.T) {
	dir, path := t.TempDir(), lend.Path(t.TempDir())
	write(t, dir, "a", "content")
	c := lend.NewClient(path)
	defer c.Close()
	if err := c.Reach(); err == nil {
		t.Error("nobody was reached")
	}
	for range 3 {
		stop := serve(t, path, dir)
		if err := c.Reach(); err != nil {
			t.Error(err)
		}
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				f, err := c.Open(t.Context(), wanted("a", 7))
				if err != nil {
					t.Error(err)
					return
				}
				f.Close()
			})
		}
		all.Wait()
		stop()
		if _, err := c.Open(t.Context(), wanted("a", 7)); err == nil || errors.Is(err, lend.ErrNot) {
			t.Errorf("without a server: %v", err)
		}
	}
}

func TestASlowServerIsNotWaitedFor(t *testing.T) {
	path := lend.Path(t.TempDir())
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	c := lend.NewClient(path)
	defer c.Close()
	if _, err := c.Open(ctx, wanted("a", 7)); err == nil {
		t.Error("an answer of nobody")
	}
}

// TestHostileFrames has a server told nonsense: it closes the connection, and lends
// nothing.
func TestHostileFrames(t *testing.T) {
	dir, path := t.TempDir(), lend.Path(t.TempDir())
	write(t, dir, "a", "content")
	serve(t, path, dir)
	frame := func(magic string, n uint32, body ...byte) []byte {
		return slices.Concat([]byte(magic), []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, body)
	}
	body := func(size byte, texts ...string) (p []byte) {
		for _, s := range texts {
			p = append(append(p, byte(len(s)>>8), byte(len(s))), s...)
		}
		return append(append(append(p, 'a'), make([]byte, 31)...), bytes.Repeat([]byte{size}, 8)...)
	}
	whole := body(0, "", "", "")
	for name, p := range map[string][]byte{
		"another version": frame("GLF1", uint32(len(whole)), whole...),
		"nothing":         frame("GLF2", 0),
		"more than one":   frame("GLF2", uint32(len(whole)+1), append(slices.Clone(whole), 0)...),
		"a text too few":  frame("GLF2", uint32(len(body(0, "mount, layer and path"))), body(0, "mount, layer and path")...),
		"a long mount":    frame("GLF2", uint32(len(body(0, strings.Repeat("x", 65), "", ""))), body(0, strings.Repeat("x", 65), "", "")...),
		"a long text":     frame("GLF2", uint32(len(whole)), append([]byte{255, 255}, whole[2:]...)...),
		"too long":        frame("GLF2", 8<<10),
		"longest":         frame("GLF2", 1<<32-1),
		"negative":        frame("GLF2", uint32(len(whole)), body(255, "", "", "")...),
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(p) // the server may have had enough before
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if answer, err := io.ReadAll(conn); len(answer) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, %v", name, answer, err)
		}
		conn.Close()
	}
}

func FuzzRequest(f *testing.F) {
	dir := f.TempDir()
	path := lend.Path(dir)
	s, err := lend.Listen(path, func(q lend.Request) (*os.File, bool) {
		if q.Size < 0 || len(q.Mount) > 64 || len(q.Path) > 4096 {
			f.Errorf("%+v is asked for", q)
		}
		return nil, false
	}, func(error) {})
	if err != nil {
		f.Fatal(err)
	}
	go func() { _ = s.Serve(context.Background()) }()
	f.Cleanup(func() { _ = s.Close() })
	f.Add([]byte("GLF2\x00\x00\x00\x2f\x00\x01m\x00\x00\x00\x00" + strings.Repeat("a", 32) + "\x00\x00\x00\x00\x00\x00\x00\x07"))
	f.Add([]byte("GLF2\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, p []byte) {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(p)
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
	})
}
