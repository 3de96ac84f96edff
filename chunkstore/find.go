package chunkstore

import (
	"context"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Find returns a chunk of any blob that has the SHA-256 digest d, checked, and which
// one it is; or [chunk.ErrNotFound].
func (s *Disk) Find(ctx context.Context, d digest.Digest) ([]byte, chunk.Ref, error) {
	ref, ok := s.findDigest(d)
	if !ok {
		return nil, ref, chunk.ErrNotFound
	}
	p, err := s.Get(ctx, ref)
	if err == nil && digest.FromBytes(p) != d {
		err = chunk.ErrNotFound // it has changed since it was indexed
	}
	return p, ref, err
}

// byDigest finds a chunk by its own digest, in whatever blob holds it, and
// copies it to where ref says.
func (s *Disk) byDigest(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	want := ref.Want()
	if want == "" || want.Algorithm() != digest.SHA256 || want.Validate() != nil {
		return nil, chunk.ErrNotFound
	}
	other, ok := s.findDigest(want)
	if !ok || other.Key() == ref.Key() || other.Size != ref.Size {
		return nil, chunk.ErrNotFound
	}
	p, err := s.Get(ctx, other)
	if err != nil {
		return nil, err
	}
	if err := ref.Check(diskName, p); err != nil {
		return nil, chunk.ErrNotFound // the other blob has changed since it was indexed
	}
	if err := s.Put(ctx, ref, p); err != nil {
		s.cfg.Report(err)
	}
	return p, nil
}

// Place returns where a chunk is stored that has the digest want, without reading it: what stands
// there need not be right any more.
func (s *Disk) Place(want digest.Digest) (ref chunk.Ref, ok bool) {
	if want.Validate() != nil || want.Algorithm() != digest.SHA256 {
		return chunk.Ref{}, false
	}
	return s.findDigest(want)
}

// findDigest returns a chunk that has the digest want.
func (s *Disk) findDigest(want digest.Digest) (ref chunk.Ref, ok bool) {
	raw := rawDigest(want)
	var d digest.Digest
	var i int
	s.mu.Lock()
	fresh, isFresh := s.fresh[raw]
	s.mu.Unlock()
	if isFresh {
		d, i = fresh.Blob, fresh.Index()
	} else {
		err := s.view(func(tx *bbolt.Tx) (err error) {
			v := tx.Bucket(digestsBucket).Get([]byte(raw))
			if v == nil {
				return chunk.ErrNotFound
			}
			d, i, err = decodePlace(v)
			return err
		})
		if err != nil {
			return chunk.Ref{}, false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[d]
	if b == nil || i >= b.chunks() || !b.have.has(i) {
		return chunk.Ref{}, false
	}
	return b.ref(i), true
}
