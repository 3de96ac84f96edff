package chunk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

func TestACacheAsksFarForTheGapsOnly(t *testing.T) {
	b := newBlob(t, 8*chunk.Size)
	for pattern := range 1 << 8 {
		near := new(memory)
		for i := range 8 {
			if pattern&(1<<i) != 0 {
				_ = near.Put(t.Context(), b.At(i), b.bytes[i*chunk.Size:(i+1)*chunk.Size])
			}
		}
		var asked, runs int
		far := runner(func(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
			runs++
			for _, r := range refs {
				asked |= 1 << r.Index()
			}
			return chunk.GetRun(ctx, sourceFunc(b.Get), refs, yield)
		})
		var refs []chunk.Ref
		for i := range 8 {
			refs = append(refs, b.At(i))
		}
		next := 0
		err := chunk.GetRun(t.Context(), chunk.Cache(near, far, new(chunk.Flight), nil), refs, func(r chunk.Ref, p []byte) error {
			if r.Index() != next || !bytes.Equal(p, b.bytes[r.Offset:r.Offset+r.Size]) {
				t.Errorf("pattern %b: chunk %d, want %d", pattern, r.Index(), next)
			}
			next++
			return nil
		})
		gaps := 0
		for i := range 8 {
			if pattern&(1<<i) == 0 && (i == 0 || pattern&(1<<(i-1)) != 0) {
				gaps++
			}
		}
		if err != nil || asked != ^pattern&0xff || runs != gaps || next != 8 {
			t.Errorf("pattern %08b: asked %08b in %d runs, want %d; %v", pattern, asked, runs, gaps, err)
		}
	}
}

type runner func(context.Context, []chunk.Ref, func(chunk.Ref, []byte) error) error

func (f runner) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = f(ctx, []chunk.Ref{ref}, func(_ chunk.Ref, q []byte) error { p = q; return nil })
	return p, err
}

func (f runner) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return f(ctx, refs, yield)
}

func TestAFaultyStoreFailsNoRead(t *testing.T) {
	b := newBlob(t, 2*chunk.Size)
	ref := b.At(0)
	for name, near := range map[string]*memory{
		"Put fails":   {fail: errors.New("disk full")},
		"Get fails":   {bad: errors.New("input/output error")},
		"Get corrupt": {bad: &chunk.CorruptError{Source: "disk", Ref: ref}},
	} {
		var reported []error
		src := chunk.Cache(near, b, new(chunk.Flight), func(err error) { reported = append(reported, err) })
		if p, err := src.Get(t.Context(), ref); err != nil || !bytes.Equal(p, b.bytes[:chunk.Size]) {
			t.Errorf("%s: %v", name, err)
		}
		if len(reported) != 1 {
			t.Errorf("%s: reported %v", name, reported)
		}
	}
}

func TestFirst(t *testing.T) {
	b := newBlob(t, 4*chunk.Size)
	refs := []chunk.Ref{b.At(0), b.At(1), b.At(2), b.At(3)}
	absent := sourceFunc(func(context.Context, chunk.Ref) ([]byte, error) { return nil, chunk.ErrNotFound })
	broken := sourceFunc(func(context.Context, chunk.Ref) ([]byte, error) { return nil, errors.New("broken") })
	half := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
		if ref.Index() >= 2 {
			return nil, chunk.ErrNotFound
		}
		return b.Get(ctx, ref)
	})
	lying := chunk.Verify("liar", sourceFunc(func(context.Context, chunk.Ref) ([]byte, error) { return []byte("lie"), nil }))
	for name, src := range map[string]chunk.Source{
		"absent": chunk.First(absent, b), "broken": chunk.First(broken, b), "half": chunk.First(half, b), "lying": chunk.First(lying, b),
	} {
		n := 0
		err := chunk.GetRun(t.Context(), src, refs, func(r chunk.Ref, _ []byte) error {
			if r.Index() != n {
				t.Errorf("%s: chunk %d came as number %d", name, r.Index(), n)
			}
			n++
			return nil
		})
		if err != nil || n != 4 {
			t.Errorf("%s: %d chunks, %v", name, n, err)
		}
	}
	if _, err := chunk.First(absent, absent).Get(t.Context(), refs[0]); err != chunk.ErrNotFound {
		t.Errorf("nobody has it: %v", err)
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	if _, err := chunk.First(absent, b).Get(left, refs[0]); !errors.Is(err, context.Canceled) || errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("a miss and a caller who has left: %v", err)
	}
	if _, err := chunk.First(absent, lying, broken).Get(t.Context(), refs[0]); !chunk.IsCorrupt(err) || errors.Is(err, context.Canceled) {
		t.Errorf("nobody has it, and one lies: %v", err)
	}
}

func TestTier(t *testing.T) {
	b := newBlob(t, 10)
	fast, slow := new(memory), &memory{}
	_ = slow.Put(t.Context(), b.At(0), b.bytes)
	if _, err := chunk.Tier(fast, slow).Get(t.Context(), b.At(0)); err != nil || len(fast.chunks) != 1 {
		t.Errorf("not kept in the fast one: %v", err)
	}
	if err := chunk.Tier(&memory{fail: errors.New("no")}, slow).Put(t.Context(), b.At(0), b.bytes); err != nil {
		t.Error(err)
	}
	if err := chunk.Tier(fast, &memory{fail: errors.New("no")}).Put(t.Context(), b.At(0), b.bytes); err == nil {
		t.Error("the slow one's failure is lost")
	}
}

func ExampleCache() {
	data := bytes.Repeat([]byte("granary "), 300_000)
	m, _ := chunk.Grid(digest.FromBytes(data), int64(len(data)))
	upstream := sourceFunc(func(_ context.Context, ref chunk.Ref) ([]byte, error) {
		return data[ref.Offset : ref.Offset+ref.Size], nil
	})
	near := new(memory)
	var flight chunk.Flight
	b := chunk.NewBlob(m, chunk.Cache(near, chunk.Verify("upstream", upstream), &flight, nil), chunk.BlobConfig{Window: 4 << 20})
	r := b.Open(context.Background())
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	fmt.Println(n, err, len(near.chunks))
	// Output: 2400000 <nil> 3
}
