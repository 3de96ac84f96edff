package tarball_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/tarball"
)

// framesOf packs p in frames of n bytes, with one to skip before every third.
func framesOf(t testing.TB, p []byte, n int, o ...zstd.EOption) (all []byte) {
	t.Helper()
	z, err := zstd.NewWriter(nil, o...)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for some := range slices.Chunk(p, n) {
		if i++; i%3 == 0 {
			all = append(all, "\x50\x2a\x4d\x18\x03\x00\x00\x00abc"...)
		}
		all = z.EncodeAll(some, all)
	}
	return all
}

// mixed are n bytes, noise, text and a long run of one byte.
func mixed(n int) []byte {
	p, r := make([]byte, n), rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(p[:n/3])
	for i := range p[n/3 : n/2] {
		p[n/3+i] = "etaoin shrdlu"[i*i%13]
	}
	return p
}

func TestFrames(t *testing.T) {
	p := mixed(1 << 20)
	for name, layer := range map[string][]byte{
		"small":           framesOf(t, p, 10_000),
		"large":           framesOf(t, p, 400_000),
		"without sums":    framesOf(t, p, 70_000, zstd.WithEncoderCRC(false)),
		"of one segment":  framesOf(t, p, 70_000, zstd.WithSingleSegment(true)),
		"hardly packed":   framesOf(t, p, 70_000, zstd.WithEncoderLevel(zstd.SpeedFastest)),
		"one, and no end": framesOf(t, p[:1], 1),
	} {
		f, err := tarball.NewFrames(bytes.NewReader(layer))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		all, err := io.ReadAll(f)
		if err != nil || !bytes.HasPrefix(p, all) || len(all) < min(len(p), 1) {
			t.Fatalf("%s: %d bytes, %v", name, len(all), err)
		}
		for _, from := range f.All {
			at := tarball.FrameBefore(f.All, from.Out+1)
			if at != from && from != f.All[len(f.All)-1] {
				t.Errorf("%s: what is at %d is before %v", name, from.Out, at)
			}
			r, err := tarball.OpenFrame(bytes.NewReader(layer), int64(len(layer)), from)
			if err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(r)
			r.Close()
			if err != nil || !bytes.Equal(rest, all[from.Out:]) {
				t.Errorf("%s: from %v on there are %d bytes, %v", name, from, len(rest), err)
			}
		}
	}
}

func TestFramesThatAreNone(t *testing.T) {
	p := mixed(100_000)
	good := framesOf(t, p, 30_000)
	large := framesOf(t, make([]byte, tarball.MaxFrame+1), tarball.MaxFrame+1)
	for name, c := range map[string]struct {
		layer []byte
		want  error
	}{
		"nothing":              {nil, toc.ErrFormat},
		"no zstd":              {p, toc.ErrFormat},
		"cut in a frame":       {good[:len(good)-1], toc.ErrMalformed},
		"cut in a header":      {append(bytes.Clone(good), 0x28, 0xb5), toc.ErrMalformed},
		"something behind":     {append(bytes.Clone(good), "something that is none"...), toc.ErrMalformed},
		"one to skip, cut":     {append(bytes.Clone(good), "\x50\x2a\x4d\x18\xff\x00\x00\x00abc"...), toc.ErrMalformed},
		"too large a frame":    {large, toc.ErrUnsupported},
		"a block of no type":   {append(bytes.Clone(good[:0]), 0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 7, 0, 0), toc.ErrMalformed},
		"a sum that is wrong":  {append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]+1), toc.ErrMalformed},
		"a window of 1 GB":     {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 1, 0, 0}, toc.ErrLimit},
		"a dictionary, unseen": {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0x21, 9, 1, 9, 0, 0, 7}, toc.ErrMalformed},
	} {
		f, err := tarball.NewFrames(bytes.NewReader(c.layer))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, f)
		f.Close()
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, err := tarball.NewFrames(io.MultiReader(bytes.NewReader(good[:200]), failing{}))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, f); !errors.Is(err, errDisk) {
		t.Errorf("of what cannot be read: %v", err)
	}
}

var errDisk = errors.New("the disk is broken")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errDisk }

func FuzzFrames(f *testing.F) {
	f.Add(framesOf(f, mixed(2000), 700))
	f.Add(framesOf(f, mixed(2000), 700, zstd.WithEncoderCRC(false)))
	f.Add([]byte("\x28\xb5\x2f\xfd\x20\x01\x07\x00\x00"))
	f.Fuzz(func(t *testing.T, layer []byte) {
		r, err := tarball.NewFrames(bytes.NewReader(layer))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		all, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err != nil || len(all) == 1<<20 {
			return
		}
		for _, from := range r.All {
			z, err := tarball.OpenFrame(bytes.NewReader(layer), int64(len(layer)), from)
			if err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(z)
			z.Close()
			if err != nil || !bytes.Equal(rest, all[from.Out:]) {
				t.Errorf("from %v on there are %d bytes of %d, %v", from, len(rest), len(all), err)
			}
		}
	})
}
