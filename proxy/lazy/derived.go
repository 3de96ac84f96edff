package lazy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/toc"
)

// Kind is a kind of objects that are derived from a layer, each from all of its
// bytes. The version of what it holds is in it.
type Kind string

// The kinds that there are.
const (
	KindGzip    Kind = "gzip-index" // of an ordinary tar+gzip
	KindProfile Kind = "profile"    // of an image, by the digest of its manifest: see package profile
	kindTable   Kind = "toc"
	kindParts   Kind = "parts"     // of a content: which others it consists of
	kindCheck   Kind = "toc-check" // whether a layer's own table agrees with the layer: agrees, or why not
)

const agrees = "ok"

// MaxDerived bounds a derived object, in bytes.
const MaxDerived = 256 << 20

// Store keeps chunks, and knows which blobs have matched their digest.
type Store interface {
	chunk.Store
	chunk.Proofs
	ReadAt(ctx context.Context, ref chunk.Ref, p []byte, off int64) error
	Drop(d digest.Digest)
	Retain(d digest.Digest, total int64) (release func())
}

// Records remember which object is derived from a blob, and where contents were
// read.
type Records interface {
	Derived(kind string, blob digest.Digest) (object digest.Digest, size int64, ok bool)
	SetDerived(kind string, blob, object digest.Digest, size int64) error
	Origins(content digest.Digest) []string
	AddOrigin(content digest.Digest, origin string) error
}

// Derived keeps objects that are derived from layers, by kind and the layer's digest.
type Derived struct {
	// Store and Records keep them. nil for both keeps nothing.
	Store   Store
	Records Records
	// Report is told of what could not be kept. nil ignores it.
	Report func(error)
}

// Get returns an object that is kept here. The error is [chunk.ErrNotFound] if it is
// not.
func (s *Derived) Get(ctx context.Context, kind Kind, blob digest.Digest) ([]byte, error) {
	if s.Store == nil {
		return nil, chunk.ErrNotFound
	}
	d, size, ok := s.Records.Derived(string(kind), blob)
	if !ok || size > MaxDerived {
		return nil, chunk.ErrNotFound
	}
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, err
	}
	p := make([]byte, 0, size)
	for i := range m.Len() {
		c, err := s.Store.Get(ctx, m.At(i))
		if err != nil {
			return nil, chunk.ErrNotFound // evicted, or wrong: it is made again
		}
		p = append(p, c...)
	}
	if d.Algorithm().FromBytes(p) != d {
		return nil, chunk.ErrNotFound
	}
	return p, nil
}

// Put keeps an object.
func (s *Derived) Put(ctx context.Context, kind Kind, blob digest.Digest, p []byte) {
	if s.Store == nil || len(p) > MaxDerived {
		return
	}
	d := digest.FromBytes(p)
	err := keep(ctx, s.Store, d, int64(len(p)), bytes.NewReader(p))
	if err == nil {
		err = s.Records.SetDerived(string(kind), blob, d, int64(len(p)))
	}
	if err != nil {
		s.report(fmt.Errorf("%s of %s: %w", kind, blob, err))
	}
}

func (s *Derived) report(err error) {
	if s.Report != nil {
		s.Report(err)
	}
}

// disagrees reports whether a layer's own table has been found to be wrong.
func (s *Derived) disagrees(table digest.Digest) bool {
	p, err := s.Get(context.Background(), kindCheck, table)
	return err == nil && string(p) != agrees
}

// keep puts a content that is read from r into a store, if r ends with io.EOF.
func keep(ctx context.Context, store Store, d digest.Digest, size int64, r io.Reader) error {
	m, err := chunk.Grid(d, size)
	if err != nil {
		return errors.Join(err, discard(r))
	}
	defer store.Retain(d, size)()
	prefix := chunk.NewPrefix(d)
	for i := range m.Len() {
		ref := m.At(i)
		p := make([]byte, ref.Size)
		if _, err := io.ReadFull(r, p); err != nil {
			store.Drop(d)
			return err
		}
		if ref.Last() {
			if err := discard(r); err != nil {
				store.Drop(d)
				return err
			}
		}
		if err := store.Put(ctx, ref, p); err != nil { // the disk is full, say
			store.Drop(d)
			return discard(r)
		}
		if m.Len() > 1 {
			_, _ = prefix.Write(p) // of a hash
			store.Link(ref, prefix.Link())
		}
	}
	if m.Len() > 1 && prefix.Matches() {
		store.Prove(d, size)
	}
	return nil
}

// discard reads r to its end.
func discard(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// marshalTable and unmarshalTable keep tables as JSON in zstd.
func marshalTable(t *toc.TOC) ([]byte, error) {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	if err := toc.EncodeJSON(w, t); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

func unmarshalTable(p []byte, size int64) (*toc.TOC, error) {
	r, err := zstd.NewReader(bytes.NewReader(p), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(toc.MaxTOCSize))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return toc.DecodeJSON(r, size)
}
