package chunkstore_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
)

// passing is a stack that keeps nothing of what passes through it.
type passing struct{ *chunkstore.Stack }

func (s passing) Put(ctx context.Context, ref chunk.Ref, p []byte) error {
	return s.Pass(ctx, ref, p)
}

// sourceFunc is a source that is a function.
type sourceFunc func(context.Context, chunk.Ref) ([]byte, error)

func (f sourceFunc) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) { return f(ctx, ref) }

// TestWhatPassedOnceIsKnownAgain although nothing of it was kept: wrong bytes, that nobody would
// check for a blob that has matched, are found out.
func TestWhatPassedOnceIsKnownAgain(t *testing.T) {
	disk := open(t, t.TempDir(), chunkstore.Config{})
	b := large(t, 1)
	pull := func(near chunk.Store, far chunk.Source) ([]byte, error) {
		defer disk.Retain(b.Blob(), b.Size())()
		src := chunk.Cache(near, far, new(chunk.Flight), nil)
		r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 1 << 20, Proofs: disk}).Open(t.Context())
		defer r.Close()
		return io.ReadAll(r)
	}
	if p, _ := pull(passing{chunkstore.NewStack(chunkstore.NewMemory(0), disk)}, b); !bytes.Equal(p, b.Bytes) {
		t.Fatalf("%d bytes", len(p))
	}
	if u := disk.Usage(); u.Bytes != 0 || u.Blobs != 0 {
		t.Errorf("%+v is kept", u)
	}
	if !disk.Proven(b.Blob()) {
		t.Error("it is forgotten at once")
	}
	lying := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
		p, err := b.Get(ctx, ref)
		if ref.Index() == 1 {
			p = make([]byte, len(p))
		}
		return p, err
	})
	stack := chunkstore.NewStack(chunkstore.NewMemory(0), disk)
	for _, near := range []chunk.Store{passing{stack}, stack} { // the latter last, for then it is kept
		name := fmt.Sprintf("%T", near)
		if p, err := pull(near, lying); !chunk.IsCorrupt(err) || len(p) != chunk.Size {
			t.Errorf("%s: %d bytes, %v", name, len(p), err)
		}
		if p, _ := pull(near, b); !bytes.Equal(p, b.Bytes) {
			t.Errorf("%s: %d bytes when they are right again", name, len(p))
		}
	}
	if err := disk.Sync(); err != nil {
		t.Error(err)
	}
}
