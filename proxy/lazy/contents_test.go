package lazy_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/toc"
)

func openContents(t *testing.T) *lazy.Contents {
	t.Helper()
	disk, err := chunkstore.Open(t.TempDir(), chunkstore.Config{SyncEvery: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = disk.Close() })
	return &lazy.Contents{Store: disk, Records: catalog.NewMemory(), Report: func(err error) { t.Error(err) }}
}

func origin(name string) lazy.Origin {
	return lazy.Origin{Repository: ref.Repository{Host: "origin.test", Name: name}, Layer: digest.FromString(name)}
}

func nobodyElse(lazy.Origin) bool { return false }

func sumOf(p []byte) toc.Digest { return sha256.Sum256(p) }

func TestContentsComeBack(t *testing.T) {
	c := openContents(t)
	for _, n := range []int{1, 1000, 1 << 20, 1<<20 + 1, 5<<20 + 7} {
		p := bytes.Repeat([]byte{byte(n), 1, 2, 3, 5}, n/5+1)[:n]
		mine := c.For(t.Context(), origin("mine"), nobodyElse)
		size := int64(n)
		if _, err := mine.ReadAt(sumOf(p), size, make([]byte, 1), 0); !errors.Is(err, toc.ErrNotKept) {
			t.Errorf("%d bytes before they are kept: %v", n, err)
		}
		if err := mine.Keep(sumOf(p), size, bytes.NewReader(p)); err != nil {
			t.Fatal(err)
		}
		r := io.NewSectionReader(readerAt(func(q []byte, off int64) (int, error) { return mine.ReadAt(sumOf(p), size, q, off) }), 0, size)
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, p) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

type readerAt func(p []byte, off int64) (int, error)

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

func TestWhatDoesNotMatchIsNotKept(t *testing.T) {
	wrong := errors.New("wrong")
	for _, n := range []int{1000, 3 << 20} {
		c := openContents(t)
		p := make([]byte, n)
		mine := c.For(t.Context(), origin("mine"), nobodyElse)
		if err := mine.Keep(sumOf(p), int64(n), io.MultiReader(bytes.NewReader(p), iotest.ErrReader(wrong))); !errors.Is(err, wrong) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if _, err := mine.ReadAt(sumOf(p), int64(n), make([]byte, 1), 0); !errors.Is(err, toc.ErrNotKept) {
			t.Errorf("%d bytes are kept: %v", n, err)
		}
	}
}

// TestAContentIsForThoseWhoMayReadItsOrigin and for nobody who merely knows its
// digest.
func TestAContentIsForThoseWhoMayReadItsOrigin(t *testing.T) {
	c := openContents(t)
	p := []byte("secret")
	d, size := sumOf(p), int64(len(p))
	if err := c.For(t.Context(), origin("private"), nobodyElse).Keep(d, size, bytes.NewReader(p)); err != nil {
		t.Fatal(err)
	}
	may := func(names ...string) func(lazy.Origin) bool {
		return func(o lazy.Origin) bool {
			for _, name := range names {
				if o == origin(name) {
					return true
				}
			}
			return false
		}
	}
	for _, who := range []struct {
		name string
		from string
		may  func(lazy.Origin) bool
		gets bool
	}{
		{"its own readers", "private", nobodyElse, true},
		{"others", "public", nobodyElse, false},
		{"others who may read it too", "public", may("private"), true},
		{"others who may read a third", "public", may("third"), false},
	} {
		_, err := c.For(t.Context(), origin(who.from), who.may).ReadAt(d, size, make([]byte, 6), 0)
		if (err == nil) != who.gets {
			t.Errorf("%s: %v", who.name, err)
		}
	}
	// A layer that has shown the content is as good an origin.
	if err := c.For(t.Context(), origin("public"), nobodyElse).Keep(d, size, bytes.NewReader(p)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.For(t.Context(), origin("public"), nobodyElse).ReadAt(d, size, make([]byte, 6), 0); err != nil {
		t.Errorf("after it was read there: %v", err)
	}
}

// TestAContentIsFoundByItsParts which are what another format has of it.
func TestAContentIsFoundByItsParts(t *testing.T) {
	c := openContents(t)
	mine := c.For(t.Context(), origin("mine"), nobodyElse)
	whole := bytes.Repeat([]byte("0123456789"), 30_000)
	var parts []toc.Extent
	for off := 0; off < len(whole); off += 70_000 {
		p := whole[off:min(off+70_000, len(whole))]
		parts = append(parts, toc.Extent{Offset: int64(off), Size: int64(len(p)), Digest: sumOf(p)})
		if err := mine.Keep(sumOf(p), int64(len(p)), bytes.NewReader(p)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(of toc.Contents) ([]byte, error) {
		p := make([]byte, 150_000)
		n, err := of.ReadAt(sumOf(whole), int64(len(whole)), p, 65_432)
		return p[:n], err
	}
	if _, err := read(mine); !errors.Is(err, toc.ErrNotKept) {
		t.Errorf("before it is known: %v", err)
	}
	mine.(toc.Composer).Compose(sumOf(whole), parts)
	if p, err := read(mine); err != nil || !bytes.Equal(p, whole[65_432:65_432+150_000]) {
		t.Errorf("%d bytes, %v", len(p), err)
	}
	if _, err := read(c.For(t.Context(), origin("other"), nobodyElse)); !errors.Is(err, toc.ErrNotKept) {
		t.Errorf("for others: %v", err)
	}
}

func TestDerivedObjectsComeBack(t *testing.T) {
	c := openContents(t)
	s := &lazy.Derived{Store: c.Store, Records: c.Records, Report: func(err error) { t.Error(err) }}
	layer := digest.FromString("layer")
	for _, n := range []int{0, 10, 3<<20 + 1} {
		want := bytes.Repeat([]byte("x"), n)
		s.Put(t.Context(), "kind", layer, want)
		got, err := s.Get(t.Context(), "kind", layer)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %d, %v", n, len(got), err)
		}
	}
	if _, err := s.Get(t.Context(), "another", layer); err == nil {
		t.Error("an object of another kind is there")
	}
	nothing := &lazy.Derived{}
	nothing.Put(t.Context(), "kind", layer, []byte("x"))
	if _, err := nothing.Get(t.Context(), "kind", layer); err == nil {
		t.Error("an object is there that was not kept")
	}
}
