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

func wanted(name string, size int64, parts int) lend.Request {
	q := lend.Request{Content: lend.Content{Size: size}, Parts: make([]lend.Content, parts)}
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
		for _, parts := range []int{0, 3, lend.MaxParts} {
			f, err := c.Open(t.Context(), wanted("a", 7, parts))
			if err != nil {
				t.Fatalf("with %d parts: %v", parts, err)
			}
			if p, err := io.ReadAll(f); err != nil || string(p) != "content" {
				t.Errorf("%q, %v", p, err)
			}
			if _, err := f.Write([]byte("x")); err == nil {
				t.Error("it can be written to")
			}
			f.Close()
			for _, q := range []lend.Request{wanted("b", 7, parts), wanted("a", 7, lend.MaxParts+1)} {
				if _, err := c.Open(t.Context(), q); !errors.Is(err, lend.ErrNot) {
					t.Errorf("what is not there: %v", err)
				}
			}
		}
		if _, err := c.Open(t.Context(), wanted("a", 8, 0)); err == nil || errors.Is(err, lend.ErrNot) {
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
				f, err := c.Open(t.Context(), wanted("a", 7, 2))
				if err != nil {
					t.Error(err)
					return
				}
				f.Close()
			})
		}
		all.Wait()
		stop()
		if _, err := c.Open(t.Context(), wanted("a", 7, 0)); err == nil || errors.Is(err, lend.ErrNot) {
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
	if _, err := c.Open(ctx, wanted("a", 7, 0)); err == nil {
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
	negative := append(append([]byte("a"), make([]byte, 31)...), bytes.Repeat([]byte{255}, 8)...)
	for name, p := range map[string][]byte{
		"another version": frame("GLF2", 40, negative...),
		"nothing":         frame("GLF1", 0),
		"part of one":     frame("GLF1", 41, make([]byte, 41)...),
		"too long":        frame("GLF1", 40*(lend.MaxParts+2)),
		"longest":         frame("GLF1", 1<<32-1),
		"negative":        frame("GLF1", 40, negative...),
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
		if q.Size < 0 || len(q.Parts) > lend.MaxParts {
			f.Errorf("%d bytes in %d parts are asked for", q.Size, len(q.Parts))
		}
		return nil, false
	}, func(error) {})
	if err != nil {
		f.Fatal(err)
	}
	go func() { _ = s.Serve(context.Background()) }()
	f.Cleanup(func() { _ = s.Close() })
	f.Add([]byte("GLF1\x00\x00\x00\x28" + strings.Repeat("a", 32) + "\x00\x00\x00\x00\x00\x00\x00\x07"))
	f.Add([]byte("GLF1\xff\xff\xff\xff"))
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
