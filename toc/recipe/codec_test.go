package recipe

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/granary-oci/granary/toc"
)

func stored(t testing.TB, r *Recipe) []byte {
	t.Helper()
	p, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestGolden reads a recipe as version 1 has it.
func TestGolden(t *testing.T) {
	blob := golden(t, "buildah.tar.gz")
	if *update {
		if err := os.WriteFile("testdata/buildah.recipe", stored(t, found(t, blob)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := golden(t, "buildah.recipe")
	r, err := Decode(p)
	if err != nil {
		t.Fatal(err)
	}
	checkRebuilt(t, r, unpacked(t, blob), blob)
	if !bytes.Equal(stored(t, found(t, blob)), p) {
		t.Error("what is found of the same layer is stored otherwise")
	}
}

// TestDecodeStrictly takes nothing that Encode does not write.
func TestDecodeStrictly(t *testing.T) {
	p := golden(t, "buildah.recipe")
	padded := bytes.Clone(p[:headSize+2])
	padded = append(padded, p[headSize+2]|0x80, 0) // the size of the blob, in a byte more
	newer := bytes.Clone(p)
	newer[len(magic)-1]++
	for name, c := range map[string]struct {
		p    []byte
		want error
	}{
		"empty":         {nil, toc.ErrFormat},
		"other":         {[]byte("GRNGZIX\x01 and more"), toc.ErrFormat},
		"newer version": {newer, toc.ErrFormat},
		"goes on":       {append(bytes.Clone(p), 0), toc.ErrMalformed},
		"long number":   {append(padded, p[headSize+3:]...), toc.ErrMalformed},
		"large":         {append(bytes.Clone(p), make([]byte, MaxSize)...), toc.ErrMalformed},
	} {
		if _, err := Decode(c.p); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
	for n := len(magic); n < len(p); n++ {
		if _, err := Decode(p[:n]); !errors.Is(err, toc.ErrMalformed) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(golden(f, "buildah.recipe"))
	f.Add(stored(f, found(f, joined(goLevel(9, 9).pack(f, sample(1000)), goLevel(9, 9).pack(f, nil), []byte("tail")))))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := Decode(p)
		if err != nil {
			return
		}
		if !bytes.Equal(stored(t, r), p) {
			t.Error("it is stored otherwise")
		}
		var b bytes.Buffer
		_ = r.Rebuild(t.Context(), &b, io.LimitReader(zeros{}, 1<<20))
		if int64(b.Len()) > r.Size {
			t.Errorf("%d bytes were written for a blob of %d", b.Len(), r.Size)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// FuzzFind holds what is found to make the blob again.
func FuzzFind(f *testing.F) {
	f.Add(goLevel(6, 6).pack(f, sample(40)))
	f.Add(pgzipLevel(1, 1).pack(f, sample(40)))
	f.Add(joined(goLevel(9, 9).pack(f, sample(40)), goLevel(9, 9).pack(f, nil), make([]byte, 10)))
	f.Fuzz(func(t *testing.T, blob []byte) {
		r, err := find(blob)
		if err != nil {
			return
		}
		z := newUnpacker(t.Context(), bytes.NewReader(blob), int64(len(blob)))
		var tar bytes.Buffer
		for next, err := z.next(); err == nil; next, err = z.next() {
			tar.Write(next.data)
		}
		checkRebuilt(t, r, tar.Bytes(), blob)
	})
}
