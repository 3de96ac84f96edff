package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/granary-oci/granary/chunkstore/lend"
	"github.com/granary-oci/granary/toc"
)

// counted are contents that are sent, of zeros.
type counted struct {
	mu   sync.Mutex
	sent int
}

func (c *counted) ReadAt(_ context.Context, _ *toc.File, p []byte, _ int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent++
	clear(p)
	return nil
}

// lentFrom returns contents whose files are in a directory, by digest, and how often one
// is asked for.
func lentFrom(t *testing.T, dir string) (l *lent, sent *counted, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	path := lend.Path(t.TempDir())
	s, err := lend.Listen(path, func(q lend.Request) (*os.File, bool) {
		asked.Add(1)
		f, err := os.Open(filepath.Join(dir, toc.Digest(q.Digest).String()))
		return f, err == nil
	}, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Serve(context.Background()) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	sent = new(counted)
	l = &lent{node: lend.NewClient(path), sent: sent, open: make(map[toc.Digest]*os.File)}
	t.Cleanup(func() { l.closeAll(); l.node.Close() })
	return l, sent, asked
}

func ofSize(size int, first byte) (*toc.File, []byte) {
	p := bytes.Repeat([]byte{first, 1, 2, 3}, size/4+1)[:size]
	return &toc.File{Entry: toc.Entry{Type: toc.Regular, Size: int64(size), Digest: sha256.Sum256(p)}}, p
}

func TestFilesAreReadFromTheNodesDisk(t *testing.T) {
	dir := t.TempDir()
	l, sent, asked := lentFrom(t, dir)
	for i, size := range []int{10, 300 << 10} {
		f, content := ofSize(size, byte(i+10))
		read := func() bool {
			t.Helper()
			p := make([]byte, 5)
			if err := l.ReadAt(t.Context(), f, p, 3); err != nil {
				t.Error(err)
			}
			return bytes.Equal(p, content[3:8])
		}
		if read() || sent.sent != i+1 {
			t.Errorf("%d bytes: what the node does not have as a file is not sent", size)
		}
		path := filepath.Join(dir, f.Digest.String())
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if !read() || sent.sent != i+1 {
			t.Errorf("%d bytes are sent", size)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		before := asked.Load()
		if kept := read(); kept != (size > 1000) || kept != (asked.Load() == before) {
			t.Errorf("%d bytes: kept open %v, asked for %d times more", size, kept, asked.Load()-before)
		}
		sent.sent = i + 1
		l.closeAll()
		if read() {
			t.Errorf("%d bytes are read from a file that was closed", size)
		}
		sent.sent = i + 1
	}
}

func TestSoManyFilesAreKeptOpen(t *testing.T) {
	dir := t.TempDir()
	l, sent, _ := lentFrom(t, dir)
	var all sync.WaitGroup
	for i := range 3 * maxLent {
		f, content := ofSize(int(keptSize)+i, byte(i))
		if err := os.WriteFile(filepath.Join(dir, f.Digest.String()), content, 0o600); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for range 3 {
				p := make([]byte, 10)
				if err := l.ReadAt(context.Background(), f, p, 0); err != nil || !bytes.Equal(p, content[:10]) {
					t.Errorf("file %d: %v, %v", i, p, err)
				}
			}
		})
	}
	all.Wait()
	if len(l.open) > maxLent || sent.sent > 0 {
		t.Errorf("%d files are open, %d were sent", len(l.open), sent.sent)
	}
}

func TestPartsOfAFile(t *testing.T) {
	known := toc.Digest{1}
	for name, is := range map[string]struct {
		extents []toc.Extent
		want    int
	}{
		"two":            {[]toc.Extent{{Size: 3, Digest: known}, {Offset: 3, Size: 7, Digest: known}}, 2},
		"a gap":          {[]toc.Extent{{Size: 3, Digest: known}, {Offset: 4, Size: 6, Digest: known}}, 0},
		"a hole behind":  {[]toc.Extent{{Size: 3, Digest: known}, {Offset: 3, Size: 6, Digest: known}}, 0},
		"without digest": {[]toc.Extent{{Size: 3}, {Offset: 3, Size: 7, Digest: known}}, 0},
	} {
		if got := parts(&toc.File{Entry: toc.Entry{Size: 10, Extents: is.extents}}); len(got) != is.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	l, _, asked := lentFrom(t, t.TempDir())
	if _, err := l.Open(t.Context(), &toc.File{Entry: toc.Entry{Size: 10}}); !errors.Is(err, lend.ErrNot) || asked.Load() > 0 {
		t.Errorf("a file without a digest is asked for: %v", err)
	}
}
