package chunk_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// blob is a blob in memory, and a source of its chunks.
type blob struct {
	*chunk.Map
	bytes []byte
	gets  atomic.Int64
}

func newBlob(t testing.TB, n int) *blob {
	t.Helper()
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	m, err := chunk.Grid(digest.FromBytes(p), int64(n))
	if err != nil {
		t.Fatal(err)
	}
	return &blob{Map: m, bytes: p}
}

func (b *blob) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	b.gets.Add(1)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return b.bytes[ref.Offset : ref.Offset+ref.Size], nil
}

// memory is a store without limits.
type memory struct {
	mu     sync.Mutex
	chunks map[chunk.Key][]byte
	fail   error // of every Put
	bad    error // of every Get
}

func (m *memory) Get(_ context.Context, ref chunk.Ref) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bad != nil {
		return nil, m.bad
	}
	p, ok := m.chunks[ref.Key()]
	if !ok {
		return nil, chunk.ErrNotFound
	}
	return p, nil
}

func (m *memory) Put(_ context.Context, ref chunk.Ref, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if m.chunks == nil {
		m.chunks = make(map[chunk.Key][]byte)
	}
	m.chunks[ref.Key()] = p
	return nil
}

// proofs records what readers say.
type proofs struct {
	mu              sync.Mutex
	proven, refuted int
	links           map[int]chunk.Link
}

func (p *proofs) Proven(digest.Digest) bool  { p.mu.Lock(); defer p.mu.Unlock(); return p.proven > 0 }
func (p *proofs) Prove(digest.Digest, int64) { p.mu.Lock(); defer p.mu.Unlock(); p.proven++ }
func (p *proofs) Refute(digest.Digest)       { p.mu.Lock(); defer p.mu.Unlock(); p.refuted++ }
func (p *proofs) Link(ref chunk.Ref, after chunk.Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.links == nil {
		p.links = make(map[int]chunk.Link)
	}
	p.links[ref.Index()] = after
}
func (p *proofs) Before(ref chunk.Ref) chunk.Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links[ref.Index()-1]
}

// sourceFunc is a source that is a function.
type sourceFunc func(context.Context, chunk.Ref) ([]byte, error)

func (f sourceFunc) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) { return f(ctx, ref) }

var sizes = []int{1, 1000, chunk.Size - 1, chunk.Size, chunk.Size + 1, 4 * chunk.Size, 9*chunk.Size + 17}

func TestLinksOfOtherAlgorithms(t *testing.T) {
	data := newBlob(t, 3*chunk.Size+5).bytes
	for _, algorithm := range []digest.Algorithm{digest.SHA384, digest.SHA512} {
		m, err := chunk.Grid(algorithm.FromBytes(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		prefix, before := chunk.NewPrefix(m.Blob()), chunk.Link("")
		for i := range m.Len() {
			ref := m.At(i)
			c := data[ref.Offset : ref.Offset+ref.Size]
			_, _ = prefix.Write(c)
			if err := ref.CheckLink("x", before, prefix.Link(), c); err != nil {
				t.Errorf("%s: %v", algorithm, err)
			}
			before = prefix.Link()
		}
		if !prefix.Matches() {
			t.Errorf("%s does not match", algorithm)
		}
	}
}

func TestARefIsOnTheGridOfItsBlob(t *testing.T) {
	d := digest.FromString("x")
	for _, r := range []chunk.Ref{
		{},
		{Blob: "sha256:1", Total: 1, Size: 1},
		{Blob: d, Total: -1, Size: -1},
		{Blob: d, Total: chunk.MaxBlobSize + 1, Size: chunk.Size},
		{Blob: d, Total: 5, Size: 4},
		{Blob: d, Total: 5, Offset: 1, Size: 4},
		{Blob: d, Total: chunk.Size, Offset: chunk.Size, Size: 0},
		{Blob: d, Total: 5, Size: 5, Digest: "sha256:1"},
		{Blob: d, Total: 3 * chunk.Size, Offset: -chunk.Size, Size: chunk.Size},
	} {
		if err := r.Validate(); err == nil {
			t.Errorf("%+v is valid", r)
		}
	}
	for _, n := range []int64{-1, chunk.MaxBlobSize + 1, 0} {
		if _, err := chunk.Grid(d, n); err == nil {
			t.Errorf("a grid of %d bytes", n)
		}
	}
	if _, err := chunk.Grid(digest.FromBytes(nil), 0); err != nil {
		t.Error(err)
	}
}

func FuzzRef(f *testing.F) {
	d := string(digest.FromString("x"))
	f.Add(d, "", int64(5), int64(0), int64(5))
	f.Add(d, d, int64(3<<20), int64(1<<20), int64(1<<20))
	f.Add("sha256:", "x", int64(-1), int64(1<<62), int64(0))
	f.Fuzz(func(t *testing.T, blob, own string, total, offset, size int64) {
		r := chunk.Ref{Blob: digest.Digest(blob), Digest: digest.Digest(own), Total: total, Offset: offset, Size: size}
		if r.Validate() != nil {
			return
		}
		if total == 0 {
			return
		}
		m, err := chunk.Grid(r.Blob, total)
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		want := m.At(r.Index())
		if want.Offset != offset || want.Size != size {
			t.Fatalf("%+v is not %+v", r, want)
		}
	})
}
