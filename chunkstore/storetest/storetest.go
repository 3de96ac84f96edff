// Package storetest holds every chunk.Store to the same contract, and makes the file
// systems that stores are tested on. A store's own tests call [Run]; what only one
// store does is tested beside it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Blob is a blob of a test.
type Blob struct {
	*chunk.Map
	Bytes []byte
}

// NewBlob returns a blob of n bytes that seed decides, named by algorithm.
func NewBlob(t testing.TB, algorithm digest.Algorithm, n int, seed uint64) Blob {
	t.Helper()
	p := Content(n, seed)
	m, err := chunk.Grid(algorithm.FromBytes(p), int64(n))
	if err != nil {
		t.Fatal(err)
	}
	return Blob{m, p}
}

// Content returns n bytes that seed decides.
func Content(n int, seed uint64) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

// Chunk returns the bytes of chunk i.
func (b Blob) Chunk(i int) []byte {
	r := b.At(i)
	return b.Bytes[r.Offset : r.Offset+r.Size]
}

// Get implements chunk.Source: a blob has all its chunks, and no others.
func (b Blob) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if ref.Blob != b.Blob() {
		return nil, chunk.ErrNotFound
	}
	return bytes.Clone(b.Bytes[ref.Offset : ref.Offset+ref.Size]), nil
}

// Run tests the stores that open returns, each of them empty and large enough
// for 64 MiB.
func Run(t *testing.T, open func(t *testing.T) chunk.Store) {
	t.Run("what was put is got", func(t *testing.T) {
		s := open(t)
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
			for i, n := range []int{0, 1, 4095, 4096, chunk.Size - 1, chunk.Size, chunk.Size + 1, 3 * chunk.Size} {
				b := NewBlob(t, algorithm, n, uint64(i))
				put(t, s, b)
				check(t, s, b)
			}
		}
	})
	t.Run("what was not put is not found", func(t *testing.T) {
		s := open(t)
		b := NewBlob(t, digest.SHA256, 3*chunk.Size+5, 1)
		mustMiss(t, s, b.At(0))
		if err := s.Put(t.Context(), b.At(1), b.Chunk(1)); err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{0, 2, 3} {
			mustMiss(t, s, b.At(i))
		}
		if p, err := s.Get(t.Context(), b.At(1)); err != nil || !bytes.Equal(p, b.Chunk(1)) {
			t.Errorf("the chunk between holes: %d bytes, %v", len(p), err)
		}
	})
	t.Run("a blob of another size is not found", func(t *testing.T) {
		s := open(t)
		b := NewBlob(t, digest.SHA256, 2*chunk.Size, 2)
		put(t, s, b)
		larger := b.At(1)
		larger.Total++
		mustMiss(t, s, larger)
	})
	t.Run("a blob that claims to be huge costs little", func(t *testing.T) {
		s := open(t)
		for i := range 20 {
			p := Content(chunk.Size, uint64(i))
			ref := chunk.Ref{Blob: digest.FromString(string(rune(i))), Total: chunk.MaxBlobSize, Offset: chunk.MaxBlobSize / 2, Size: chunk.Size}
			if err := s.Put(t.Context(), ref, p); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Get(t.Context(), ref); err != nil || !bytes.Equal(got, p) {
				t.Fatalf("blob %d: %d bytes, %v", i, len(got), err)
			}
		}
	})
	t.Run("putting again changes nothing", func(t *testing.T) {
		s := open(t)
		b := NewBlob(t, digest.SHA256, chunk.Size+9, 3)
		put(t, s, b)
		put(t, s, b)
		check(t, s, b)
	})
	t.Run("many at once", func(t *testing.T) {
		s := open(t)
		var blobs []Blob
		for i := range 8 {
			blobs = append(blobs, NewBlob(t, digest.SHA256, 2*chunk.Size+i, uint64(10+i)))
		}
		var wg sync.WaitGroup
		for range 4 {
			for _, b := range blobs {
				wg.Go(func() {
					for i := range b.Len() {
						if err := s.Put(t.Context(), b.At(i), b.Chunk(i)); err != nil {
							t.Error(err)
						}
						if p, err := s.Get(t.Context(), b.At(i)); err != nil || !bytes.Equal(p, b.Chunk(i)) {
							t.Errorf("chunk %d: %d bytes, %v", i, len(p), err)
						}
					}
				})
			}
		}
		wg.Wait()
		for _, b := range blobs {
			check(t, s, b)
		}
	})
	t.Run("as the near side of a cache", func(t *testing.T) {
		s := open(t)
		b := NewBlob(t, digest.SHA256, 9*chunk.Size+77, 30)
		for _, far := range []chunk.Source{b, nothing{}} {
			src := chunk.Cache(s, far, new(chunk.Flight), func(err error) { t.Error(err) })
			r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 8 * chunk.Size}).Open(t.Context())
			var got []byte
			for {
				p, _, err := r.Next()
				if err != nil {
					break
				}
				got = append(got, p...)
			}
			_ = r.Close()
			if !bytes.Equal(got, b.Bytes) {
				t.Errorf("from %T: %d bytes that are not the blob's", far, len(got))
			}
		}
	})
}

type nothing struct{}

func (nothing) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, chunk.ErrNotFound }

func put(t *testing.T, s chunk.Store, b Blob) {
	t.Helper()
	for i := range b.Len() {
		if err := s.Put(t.Context(), b.At(i), b.Chunk(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func check(t *testing.T, s chunk.Store, b Blob) {
	t.Helper()
	for i := range b.Len() {
		if p, err := s.Get(t.Context(), b.At(i)); err != nil || !bytes.Equal(p, b.Chunk(i)) {
			t.Errorf("%s: %d bytes, %v", b.At(i), len(p), err)
		}
	}
}

func mustMiss(t *testing.T, s chunk.Store, ref chunk.Ref) {
	t.Helper()
	if p, err := s.Get(t.Context(), ref); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("%s: %d bytes, %v; want not found", ref, len(p), err)
	}
}
