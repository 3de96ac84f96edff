package layout_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/layout"
)

// kept is a directory that others keep blobs in.
type kept struct {
	*testing.T
	dir      string
	reported []error
}

func newKept(t *testing.T) *kept { return &kept{T: t, dir: t.TempDir()} }

func (k *kept) content(always bool) *layout.Content {
	c := layout.NewContent(k.dir, always, func(err error) { k.reported = append(k.reported, err) })
	k.Cleanup(func() { _ = c.Close() })
	return c
}

func (k *kept) path(d digest.Digest) string {
	return filepath.Join(k.dir, "blobs", string(d.Algorithm()), d.Encoded())
}

// put writes a file for a blob, which was changed last some time ago.
func (k *kept) put(d digest.Digest, p []byte, age time.Duration) {
	k.Helper()
	err := os.MkdirAll(filepath.Dir(k.path(d)), 0o755)
	if err == nil {
		err = os.WriteFile(k.path(d), p, 0o644)
	}
	if err == nil {
		err = os.Chtimes(k.path(d), time.Time{}, time.Now().Add(-age))
	}
	if err != nil {
		k.Fatal(err)
	}
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	return p
}

func TestContentIsWhatHasMatched(t *testing.T) {
	for _, size := range []int{0, 1, chunk.Size, 3*chunk.Size + 7} {
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			k, p := newKept(t), randomBytes(size)
			c, d := k.content(false), algorithm.FromBytes(p)
			k.put(d, p, time.Hour)
			b, err := c.Open(t.Context(), d)
			if err != nil {
				t.Fatalf("%s of %d bytes: %v", algorithm, size, err)
			}
			m, _ := chunk.Grid(d, int64(size))
			for i := range m.Len() {
				ref := m.At(i)
				got, err := b.Get(t.Context(), ref)
				if err != nil || !bytes.Equal(got, p[ref.Offset:ref.Offset+ref.Size]) {
					t.Errorf("%s: %v", ref, err)
				}
				before, after, ok := c.Links(ref)
				if err := ref.CheckLink("content", before, after, got); err != nil || !ok {
					t.Errorf("%s: %v", ref, err)
				}
			}
			if len(k.reported) > 0 {
				t.Error(k.reported)
			}
		}
	}
}

// TestContentThatIsNotGivenOut is a miss, unless what has a blob's name cannot be one.
func TestContentThatIsNotGivenOut(t *testing.T) {
	p := randomBytes(2*chunk.Size + 1)
	d := digest.FromBytes(p)
	for name, prepare := range map[string]func(k *kept){
		"missing":            func(*kept) {},
		"no directory":       func(k *kept) { _ = os.RemoveAll(k.dir) },
		"just written":       func(k *kept) { k.put(d, p, -time.Hour) }, // whenever this is looked at
		"short":              func(k *kept) { k.put(d, p[:len(p)-1], time.Hour) },
		"long":               func(k *kept) { k.put(d, append(bytes.Clone(p), 0), time.Hour) },
		"wrong":              func(k *kept) { k.put(d, append([]byte{p[0] ^ 1}, p[1:]...), time.Hour) },
		"symlink to outside": func(k *kept) { k.put(d, p, time.Hour); k.moveOut(d) },
		"directory":          func(k *kept) { _ = os.MkdirAll(k.path(d), 0o755) },
	} {
		k := newKept(t)
		prepare(k)
		c := k.content(false)
		for range 2 {
			_, err := c.Open(t.Context(), d)
			if other := name == "directory" || name == "symlink to outside"; err == nil || errors.Is(err, chunk.ErrNotFound) == other {
				t.Errorf("%s: %v", name, err)
			}
		}
		wrong := 0
		for _, err := range k.reported {
			if chunk.IsCorrupt(err) && strings.Contains(err.Error(), k.path(d)) {
				wrong++
			}
		}
		if want := map[string]int{"short": 1, "long": 1, "wrong": 1}[name]; wrong != want {
			t.Errorf("%s: %d reports of a wrong file, want %d: %v", name, wrong, want, k.reported)
		}
	}
}

// moveOut puts a symlink in the place of a blob's file.
func (k *kept) moveOut(d digest.Digest) {
	k.Helper()
	outside := filepath.Join(k.TempDir(), "blob")
	if err := errors.Join(os.Rename(k.path(d), outside), os.Symlink(outside, k.path(d))); err != nil {
		k.Fatal(err)
	}
}

func TestContentThatChanges(t *testing.T) {
	k, p := newKept(t), randomBytes(2*chunk.Size)
	c, d := k.content(false), digest.FromBytes(p)
	k.put(d, p, time.Hour)
	b, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	m, _ := chunk.Grid(d, b.Size())
	f, ok := b.Lend(t.Context(), chunk.Size, chunk.Size)
	if !ok {
		t.Fatal("the file is not lent")
	}
	lent, err := io.ReadAll(f)
	f.Close()
	if err != nil || !bytes.Equal(lent, p[chunk.Size:]) {
		t.Errorf("%d bytes were lent: %v", len(lent), err)
	}
	k.put(d, append([]byte{p[0] ^ 1}, p[1:]...), 2*time.Hour)
	if _, err := b.Get(t.Context(), m.At(0)); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("of a file that has changed: %v", err)
	}
	if _, ok := b.Lend(t.Context(), 0, 1); ok {
		t.Error("a file that has changed is lent")
	}
	if _, err := c.Open(t.Context(), d); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("of a file that is wrong now: %v", err)
	}
	k.put(d, p, 3*time.Hour)
	if _, err := c.Open(t.Context(), d); err != nil {
		t.Errorf("of a file that is right again: %v", err)
	}
}

// TestContentThatIsCheckedEachTime is not lent as a file.
func TestContentThatIsCheckedEachTime(t *testing.T) {
	k, p := newKept(t), randomBytes(2*chunk.Size)
	c, d := k.content(true), digest.FromBytes(p)
	k.put(d, p, time.Hour)
	b, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := b.Lend(t.Context(), 0, 1); ok {
		t.Error("a file is lent that is to be checked each time")
	}
	m, _ := chunk.Grid(d, b.Size())
	if _, err := b.Get(t.Context(), m.At(1)); err != nil {
		t.Error(err)
	}
}

func TestContentThatIsClosedChecksNothing(t *testing.T) {
	k, p := newKept(t), randomBytes(10)
	c, d := k.content(false), digest.FromBytes(p)
	k.put(d, p, time.Hour)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Open(t.Context(), d); !errors.Is(err, chunk.ErrNotFound) {
		t.Error(err)
	}
}

func TestContentIsListed(t *testing.T) {
	k := newKept(t)
	c := k.content(false)
	want := map[digest.Digest]bool{digest.FromString("a"): true, digest.SHA512.FromString("b"): true}
	for d := range want {
		k.put(d, nil, 0)
	}
	k.put("sha256:ingest", nil, 0)
	written := func(ago time.Duration) {
		for d := range want {
			if err := os.Chtimes(filepath.Dir(k.path(d)), time.Time{}, time.Now().Add(-ago)); err != nil {
				t.Fatal(err)
			}
		}
	}
	written(-time.Hour) // which is a moment ago whenever this is looked at
	if _, version, err := c.List(t.Context(), ""); err != nil || version != "" {
		t.Errorf("a directory that was written to a moment ago has the version %q: %v", version, err)
	}
	written(time.Hour)
	all, version, err := c.List(t.Context(), "")
	if err != nil || len(all) != len(want) || !want[all[0]] || !want[all[1]] {
		t.Errorf("%v, %v", all, err)
	}
	if again, same, err := c.List(t.Context(), version); err != nil || again != nil || same != version {
		t.Errorf("%v, %q, %v", again, same, err)
	}
	k.put(digest.FromString("c"), nil, 0)
	if more, _, err := c.List(t.Context(), version); err != nil || len(more) != 3 {
		t.Errorf("%v, %v", more, err)
	}
}
